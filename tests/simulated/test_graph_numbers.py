"""Graph mode, dynamic: numbers as arguments, and the shapes that FX has against those that the graph gives."""

from __future__ import annotations

import pytest
import torch
import torchair
from torch.utils._pytree import tree_leaves
from torchair._ge_concrete_graph import ge_apis as ge
from torchair.core import _torchair
from torchair.core._backend import TorchNpuGraph
from torchair.ge._ge_graph import DataType, GeGraph

Y = torch.arange(6.0).reshape(2, 3)
WHOLE = (6, 4, 9)
REAL = (0.5, 2.5, -1.25)

WITH_A_WHOLE_NUMBER = {
    "a factor": lambda n, y: y.sum() * n,
    "a divisor": lambda n, y: (y / n, n / (y + 1), y // n, y.long() / n),
    "an exponent": lambda n, y: ((y / 10) ** n, torch.pow(n, y / 5)),
    "other dtypes": lambda n, y: (y.bfloat16() * n, y.long() * n, y > n),
    "alpha and beta": lambda n, y: (torch.add(y, y, alpha=n), torch.addmm(y @ y.t(), y, y.t(), beta=n, alpha=2 * n)),
    "values": lambda n, y: (y.clamp(0, n - 4), y.masked_fill(y > 2, n), torch.where(y > 2, y, n), y.clone().fill_(n)),
    "repeat": lambda n, y: y.repeat(n, 1),
    "view": lambda n, y: (y.new_ones(n * 2).view([n, 2]) + 1, y.repeat(n, 1).view(-1, n) + 1),
    "zeros, full": lambda n, y: (torch.zeros(n, 3, device=y.device) + y[0], y.new_full((2, n), n)),
    "full of an expression": lambda n, y: torch.full((2, 2), n * 1.5, device=y.device) + y[0, 0],
    "expand": lambda n, y: y[:1, :1].expand(n, 4) + 1,
    "arange": lambda n, y: torch.arange(1, 3 * n, n, device=y.device) + y[0, 0],
    "a slice": lambda n, y: (y[:, : n // 3] + 1, y.repeat(n, 1).narrow(0, n - 3, 2) + 1, y.repeat(n, 1)[n - 1]),
    "outputs": lambda n, y: (y + 1, n, n + 1, n * 2 - 3, n // 2, n % 3),
    "a tensor of it": lambda n, y: torch.tensor(n, device=y.device) + y,
    "in place": lambda n, y: y.add_(n),
    "topk, one_hot": lambda n, y: (torch.topk(y, n // 3, -1)[0], torch.nn.functional.one_hot(y.long(), n + 6)),
    "as_strided": lambda n, y: y.repeat(n, 1).as_strided((n, 2), (2, 1)) + 1,
    "a reduced dimension": lambda n, y: y.repeat(n, 1).mean(0),
}
WITH_A_REAL_NUMBER = {
    "arithmetic": lambda f, y: (y * f, y / f, y > f, y.long() * f, y.bfloat16() * f, torch.add(y, y, alpha=f)),
    "outputs": lambda f, y: (y + (f + 1), f, f * 2),
    "values": lambda f, y: (y.clamp(min=f), y.masked_fill(y > 2, f), torch.full((2,), f, device=y.device) + y[0, 0]),
}
WITH_A_TRUTH_VALUE = {
    "arithmetic": lambda b, y: y * b,
    "a branch": lambda b, y: y + 1 if b else y - 1,
    "outputs": lambda b, y: (y * 1, b, not b),
}
CASES = [
    pytest.param(function, numbers, id=f"{kind}: {name}")
    for kind, numbers, functions in (
        ("whole", WHOLE, WITH_A_WHOLE_NUMBER),
        ("real", REAL, WITH_A_REAL_NUMBER),
        ("truth", (True, False), WITH_A_TRUTH_VALUE),
    )
    for name, function in functions.items()
]


def compiled(function, dynamic=True):
    torch._dynamo.reset()
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    return torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)


def agree(got, wanted):
    for one, other in zip(tree_leaves(got), tree_leaves(wanted), strict=True):
        assert type(one) is type(other)
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one.cpu(), other)
        else:
            assert one == other


@pytest.mark.parametrize(("function", "numbers"), CASES)
def test_a_number_is_an_argument(function, numbers):
    graph = compiled(function)
    for number in numbers:
        agree(graph(number, Y.clone().npu()), function(number, Y.clone()))


def test_two_numbers_make_a_size():
    def function(n, m, y):
        return y.new_zeros(n, m) + n * m, y.new_ones(n * m).view(m, n) + 1, n + m, y.sum() + n - m

    graph = compiled(function)
    for n, m in ((3, 4), (5, 7), (7, 5)):
        agree(graph(n, m, Y.npu()), function(n, m, Y))


def test_sizes_of_a_tensor_are_numbers():
    def function(y):
        n = y.shape[0]
        return y * n, n, y.sum() / y.numel(), n * 3 + 1, y.reshape(-1, n) + 1, y.new_zeros([n * 2, 1]) + n

    graph = compiled(function)
    for n in (2, 4, 5):
        y = torch.arange(float(3 * n)).reshape(n, 3)
        agree(graph(y.npu()), function(y))


# ---- what FX says of the outputs ----


@pytest.fixture(scope="module")
def twice():
    """An operator whose fake implementation tells what the test tells it to."""
    library = torch.library.Library("test_graph_numbers", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    said = {}
    torch.library.impl(library, "twice", "Meta")(lambda x: x.new_empty(said["shape"], dtype=said["dtype"]))
    operator = torch.ops.test_graph_numbers.twice

    @torchair.register_fx_node_ge_converter(operator.default)
    def convert(x, meta_outputs=None):
        return torchair.ge.custom_op("Add", inputs={"x1": x, "x2": x}, outputs=["y"])

    yield operator, said
    library._destroy()


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 2), torch.float32), ((2, 2, 1), torch.float32), ((4,), torch.float32), ((2, 2), torch.int32)],
    ids=["size", "rank", "flat", "dtype"],
)
def test_a_wrong_fake_implementation_is_refused(twice, shape, dtype, dynamic):
    operator, said = twice
    said.update(shape=shape, dtype=dtype)
    with pytest.raises(
        RuntimeError, match=r"twice.*" if dtype == torch.int32 else r"output 0 of the graph, node .*twice.*fake"
    ):
        compiled(lambda x: operator(x), dynamic)(torch.ones(2, 2).npu())


def test_a_right_fake_implementation_is_accepted(twice):
    operator, said = twice
    said.update(shape=(2, 2), dtype=torch.float32)
    assert compiled(lambda x: operator(x), False)(torch.ones(2, 2).npu()).tolist() == [[2, 2], [2, 2]]


def small_graph():
    with GeGraph() as graph:
        x = ge.Data(index=0, shape=[2, 2], dtype=DataType.DT_FLOAT, placement="NPU")
        y = ge.Add(x, x)
        y.set_meta(torch.ones(2, 2))
        ge.NetOutput([y])
        made = TorchNpuGraph()
        made.load(graph)
    return made


@pytest.mark.parametrize(
    ("shapes", "message"),
    [([[1, 2]], r"\[2, 2\].*\[1, 2\]"), ([[2, 2], [2, 2]], "1 outputs.*2"), ([[1, 2, 3]], r"\[2, 2\].*\[1, 2, 3\]")],
)
def test_outputs_other_than_those_of_fx_are_refused(shapes, message):
    graph = small_graph()
    graph.set_hint_shape([[2, 2]], shapes)
    with pytest.raises(RuntimeError, match=message):
        graph.compile()


def test_what_is_no_tensor_is_refused_as_by_the_extension_module():
    graph = small_graph()
    graph.compile()
    for call, message in (
        (lambda: graph.run([None]), "element 0 is None"),
        (lambda: graph.run([123]), "element 0 is not a Tensor"),
        (lambda: graph.run([torch.ones(2, 2)], [123]), "element 0 is not a Tensor"),
        (lambda: graph.auto_tune([None]), "element 0 is None"),
        (lambda: graph.auto_tune([torch.ones(2, 2), 1]), "element 1 is not a Tensor"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
    assert graph.run([torch.ones(2, 2)], [None])[0].tolist() == [[2, 2], [2, 2]]


def test_check_cann_compat_answers_as_cann():
    ask = _torchair.check_cann_compat
    assert ask("Add", [], []) == "" and ask("MoeReRouting", ["per_token_scales"], ["idx_type"]) == ""
    assert (
        ask("NoSuchOp", [], []) == "OperatorFactory find optype NoSuchOp failed, maybe you need upgrade cann version."
    )
    assert ask("MoeReRouting", ["tokens", "x9"], ["a"]) == (
        "optype MoeReRouting unsupported optional input [x9], optional attr [a], please upgrade cann version."
    )
