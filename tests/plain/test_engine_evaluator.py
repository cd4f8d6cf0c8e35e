"""The engine's runs: inputs, outputs, order, memory, threads, observers."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from graphs import Graph
from moe_graph.engine import GraphError, KernelError, Tensors, kernel, load_model, registry
from moe_graph.engine.evaluator import observe
from moe_graph.foundation import cann

pytestmark = pytest.mark.skipif(not cann.torch_npu_is_installed(), reason="the torch_npu wheel is not installed")


@pytest.fixture
def kernels(monkeypatch):
    """Registers kernels for one test."""
    monkeypatch.setattr(registry, "_kernels", dict(registry._kernels))
    return kernel


def program(graph, *outputs, **how):
    return load_model(graph.output(*outputs, **how).serialized())


def test_optional_inputs_come_as_none(kernels):
    @kernels("Optional")
    def optional(x: Tensor, first: Tensor | None = None, second: Tensor | None = None) -> Tensor:
        assert first is None
        return x if second is None else x + second

    graph = Graph()
    x = graph.data()
    fed = graph.node("Optional", x=x, first="", second=graph.const(2.0))
    unfed, left_out = graph.node("Optional", x=x, first="", second=""), graph.node("Optional", x=x)
    results = program(graph, fed, unfed, left_out).run([torch.zeros(3)])
    assert [result.tolist() for result in results] == [[2, 2, 2], [0, 0, 0], [0, 0, 0]]


def test_several_and_dynamic_outputs_come_in_order(kernels):
    @kernels("Pieces")
    def pieces(x: Tensor, *, node) -> tuple[Tensor, Tensors]:
        return x.sum(), [x[at] for at in range(len(node.outputs) - 1)]

    graph = Graph()
    made = graph.node("Pieces", x=graph.data(), outputs=("total", "y0", "y1", "y2"), name="pieces")
    results = program(graph, "pieces:3", made, "pieces:1", "pieces:1").run([torch.tensor([1.0, 2.0, 4.0])])
    assert [result.item() for result in results] == [4, 7, 1, 1]


@pytest.mark.parametrize("returned", [(), [torch.ones(1)] * 2, None, 3, [None], "no tensor"], ids=str)
def test_a_kernel_that_returns_something_else_is_named(kernels, returned):
    kernels("Wrong")(lambda x: returned)
    graph = Graph()
    made = program(graph, graph.node("Wrong", x=graph.data(), name="it"))
    with pytest.raises(KernelError, match="node 'it' .GE type Wrong"):
        made.run([torch.ones(3)])


def test_control_edges_order_nodes_and_pull_them_in(kernels):
    ran = []

    @kernels("LogForTest")
    def log(x: Tensor, *, word: str) -> Tensor:
        ran.append(word)
        return x

    graph = Graph()
    x = graph.data()
    first = graph.node("LogForTest", x=x, attrs={"word": "first"}, controls=["late"], name="first")
    graph.node("LogForTest", x=x, attrs={"word": "late"}, controls=["later"], name="late")
    graph.node("LogForTest", x=x, attrs={"word": "later"}, name="later")
    graph.node("LogForTest", x=x, attrs={"word": "at the end"}, controls=["first"], name="end")
    graph.node("LogForTest", x=x, attrs={"word": "never"}, name="never")
    program(graph, first, controls=["end"]).run([torch.ones(3)])
    assert ran == ["later", "late", "first", "at the end"]


def test_a_value_is_freed_after_its_last_reader(kernels):
    alive, weak = [], {}

    @kernels("Watch")
    def watch(x: Tensor, *, word: str) -> Tensor:
        gc.collect()
        alive.append((word, sorted(name for name, reference in weak.items() if reference() is not None)))
        y = x + 1
        weak[word] = weakref.ref(y)
        return y

    graph = Graph()
    a = graph.node("Watch", x=graph.data(), attrs={"word": "a"})
    b = graph.node("Watch", x=a, attrs={"word": "b"})
    unread = graph.node("Watch", x=a, attrs={"word": "unread"}, name="unread")
    c = graph.node("Watch", x=b, attrs={"word": "c"}, controls=["unread"])
    d = graph.node("Watch", x=c, attrs={"word": "d"})
    results = program(graph, d, b).run([torch.zeros(3)])
    # An input of the running node is alive; what only earlier nodes read is not; an output of the graph stays.
    assert alive == [("a", []), ("b", ["a"]), ("unread", ["a", "b"]), ("c", ["b"]), ("d", ["b", "c"])]
    assert unread and sorted(n for n, r in weak.items() if r() is not None) == ["b", "d"]
    assert [result.tolist() for result in results] == [[4] * 3, [2] * 3]


def test_an_input_handed_through_and_a_constant_handed_out():
    graph = Graph()
    x, c = graph.data(), graph.const([1.0, 2.0])
    made = program(graph, x, c, graph.node("Unsqueeze", x=c, attrs={"axes": [0]}), x)
    value = torch.ones(3)
    for _ in range(2):  # what the caller does to an output changes no constant of the next run
        results = made.run([value])
        assert [result.tolist() for result in results] == [[1, 1, 1], [1, 2], [[1, 2]], [1, 1, 1]]
        for result in results[1:3]:
            result.zero_()
    assert results[0].data_ptr() == value.data_ptr()


@pytest.mark.parametrize("direct", [True, False], ids=["constant", "view of a constant"])
def test_a_node_that_would_assign_to_a_constant_is_refused(direct):
    graph = Graph()
    value, c = graph.data(), graph.const([1.0, 2.0, 3.0])
    reference = c if direct else graph.node("Unsqueeze", x=c, attrs={"axes": [0]})
    made = program(graph, graph.node("Assign", ref=reference, value=value, name="it"), c)
    with pytest.raises(
        KernelError, match="node 'it' .GE type Assign.* assigns to its input 'ref', which is a constant"
    ):
        made.run([torch.zeros(3)])


def test_inputs_are_taken_by_index_and_unread_ones_too():
    graph = Graph()
    second, first = graph.data(name="second", index=1), graph.data(name="first", index=0)
    graph.data(torch.int64, (), name="unread", index=2)
    made = program(graph, graph.node("Sub", x1=first, x2=second))
    assert made.run([torch.full((3,), 5.0), torch.ones(3), torch.tensor(0)])[0].tolist() == [4, 4, 4]


def test_wrong_inputs_are_refused_by_name():
    graph = Graph()
    x, y = graph.data(shape=(3, 2), name="x"), graph.data(torch.int32, (), name="y")
    made = program(graph, x, y)
    good = torch.ones(3, 2), torch.tensor(1, dtype=torch.int32)
    assert len(made.run(list(good))) == 2
    for inputs, message in [
        ([], "takes 2 inputs, got 0"),
        ([*good, good[0]], "takes 2 inputs, got 3"),
        ([good[0].double(), good[1]], "input 0 of node 'x' .*must be DT_FLOAT, got torch.float64"),
        ([good[0].t(), good[1]], r"input 0 of node 'x' .*must have shape \[3, 2\], got \[2, 3\]"),
        ([good[0][0], good[1]], r"must have shape \[3, 2\], got \[2\]"),
        ([good[0], good[1].repeat(2)], r"input 1 of node 'y' .*must have shape \[\], got \[2\]"),
        ([good[0], 1], "input 1 of node 'y' .*must be a tensor, got int"),
    ]:
        with pytest.raises(GraphError, match=message):
            made.run(inputs)


def test_dimensions_left_open():
    graph = Graph()
    made = program(
        graph, graph.node("Neg", x=graph.data(shape=(-1, 2))), graph.data(shape=(-2,)), graph.data(None, (2,))
    )
    for length in (0, 1, 7):
        inputs = [torch.ones(length, 2), torch.ones([1] * length), torch.ones(2, dtype=torch.int8)]
        assert [r.shape for r in made.run(inputs)] == [i.shape for i in inputs]
    with pytest.raises(GraphError, match=r"must have shape \[-1, 2\], got \[2, 3\]"):
        made.run([torch.ones(2, 3), torch.ones(1), torch.ones(2)])


def test_a_number_comes_as_one_element_and_is_a_scalar():
    """torchair describes a number as a scalar and feeds a tensor [1]."""
    graph = Graph()
    result = program(graph, graph.data(torch.int64, ())).run([torch.tensor([5])])[0]
    assert result.shape == () and result.item() == 5


def test_no_gradient_is_recorded():
    graph = Graph()
    x = graph.data()
    results = program(graph, graph.node("Neg", x=x), x).run([torch.ones(3, requires_grad=True)])
    assert not any(result.requires_grad for result in results)


def test_threads_share_a_program():
    graph = Graph()
    x = last = graph.data(shape=(-1,))
    for _ in range(50):
        last = graph.node("Add", x1=graph.node("Mul", x1=last, x2=graph.const(0.5)), x2=x)
    made = program(graph, last)
    together = threading.Barrier(8)

    def run(number):
        together.wait(30)
        return [made.run([torch.full((number + turn,), float(number))])[0] for turn in range(20)]

    with ThreadPoolExecutor(8) as pool:
        for number, results in enumerate(pool.map(run, range(8))):
            for turn, result in enumerate(results):
                assert result.shape == (number + turn,)
                assert torch.allclose(result, torch.tensor(2.0 * number))


def test_observers_see_their_threads_runs_until_they_leave(kernels):
    graph = Graph()
    made = program(graph, graph.node("Neg", x=graph.data(name="x"), name="neg"))
    seen = {"mine": [], "all": []}

    def observer(name):
        def begin(plan, values):
            seen[name].append((plan.name, len(values)))
            return lambda node, outputs: seen[name].append((node.name, outputs[0].tolist()))

        return begin

    def elsewhere():
        thread = threading.Thread(target=made.run, args=([torch.ones(3)],))
        thread.start()
        thread.join()

    run = [("graph", 1), ("neg", [-1, -1, -1])]
    with observe(observer("mine")), observe(observer("all"), all_threads=True):
        made.run([torch.ones(3)])
        elsewhere()
    made.run([torch.ones(3)])
    assert seen == {"mine": run, "all": run + run}
    with pytest.raises(ZeroDivisionError), observe(observer("mine")):
        1 / 0  # noqa: B018
    made.run([torch.ones(3)])
    assert seen["mine"] == run
