"""The engine's reading of graphs: constants, inputs, order; and graphs that are none, which are refused by name."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cases
from graphs import PROTO_NUMBERS, Graph, Type, as_bytes
from moe_graph.engine import GraphError, KernelError, Tensors, kernel, load_model, registry
from moe_graph.foundation import cann

pytestmark = pytest.mark.skipif(not cann.torch_npu_is_installed(), reason="the torch_npu wheel is not installed")


@pytest.fixture
def kernels(monkeypatch):
    """Registers kernels for one test."""
    monkeypatch.setattr(registry, "_kernels", dict(registry._kernels))
    return kernel


def constant(value, **how):
    graph = Graph()
    return load_model(graph.output(graph.const(value, **how)).serialized()).run([])[0]


CONSTANT_DTYPES = [
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool, torch.complex64, torch.complex128),
    *cases.INTEGERS,
    *cases.existing("float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "complex32"),
]


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
@pytest.mark.parametrize("dtype", CONSTANT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,), (2, 0, 3)], ids=str)
def test_constants_of_every_dtype(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    count = int(torch.tensor(shape).prod()) if shape else 1
    size = torch.empty((), dtype=torch.uint8 if dtype == torch.complex32 else dtype).element_size()
    size = 4 if dtype == torch.complex32 else size
    data = torch.randint(0, 2 if dtype == torch.bool else 256, (count * size,), dtype=torch.uint8, generator=generator)
    value = data.view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)
    result = constant(value)
    assert (result.dtype, result.shape) == (dtype, torch.Size(shape))
    assert as_bytes(result) == as_bytes(value)


@pytest.mark.parametrize("ge_type", ["DT_INT4", "DT_FLOAT4_E2M1", "DT_FLOAT4_E1M2"])
@pytest.mark.parametrize("shape", [(2, 4), (5,), (3, 1), (0, 4), ()], ids=str)
def test_half_byte_constants_are_unpacked_low_half_first(ge_type, shape):
    count = torch.empty(shape).numel()
    elements = [(3 * i + 1) % 16 for i in range(count)]
    padded = elements + [0] * (count % 2)
    data = bytes(low | high << 4 for low, high in zip(padded[::2], padded[1::2]))
    result = constant(0, dtype=ge_type, shape=shape, data=data)
    assert result.dtype == torch.uint8 and result.tolist() == torch.tensor(elements).view(shape).tolist()


def test_any_byte_but_zero_is_true():
    assert constant(0, dtype="DT_BOOL", shape=(4,), data=b"\0\1\2\xff").view(torch.uint8).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(shape=(3,), data=b"1234"), "DT_FLOAT .3,. needs 12 bytes of data, got 4"),
        (dict(shape=(3,), data=b""), "needs 12 bytes of data, got 0"),
        (dict(shape=(-1,), data=b""), "unknown shape"),
        (dict(shape=(2**62, 2**62), data=b"1"), "needs .* bytes of data, got 1"),
        (dict(shape=(0, 2**62, 2**62), data=b""), "impossible shape"),
        (dict(dtype="DT_INT4", shape=(3,), data=b"1"), "needs 2 bytes"),
        (dict(dtype=13, data=b"text"), "data type 13"),  # DT_STRING
        (dict(dtype=0, data=b""), "data type 0"),
        (dict(dtype=9999, data=b""), "data type 9999"),
    ],
    ids=str,
)
def test_bad_constants_are_refused(how, message):
    with pytest.raises(GraphError, match=f"node 'c' .GE type Const.*{message}"):
        constant(1.0, name="c", **how)


def test_a_constant_without_value_is_refused():
    for prepare in (lambda op: None, lambda op: op.attr["value"], lambda op: setattr(op.attr["value"], "i", 3)):
        graph = Graph()
        prepare(graph.op("Const", "c"))
        with pytest.raises(GraphError, match="node 'c' .* has no tensor in its attribute 'value'"):
            load_model(graph.output("c:0").serialized())


# ---- malformed graphs ----


def small_graph():
    """x * 2 + [1, 2, 3] over a control edge, and its reshape."""
    graph = Graph()
    x = graph.data()
    first = graph.node("Mul", x1=x, x2=graph.const(2.0), name="mul")
    second = graph.node("Add", x1=first, x2=graph.const([1.0, 2.0, 3.0]), name="add", controls=[x])
    shaped = graph.node("Unsqueeze", x=second, attrs={"axes": [0]}, name="unsqueeze")
    return graph.output(second, shaped)


def test_the_small_graph_runs():
    first, second = load_model(small_graph().serialized()).run([torch.ones(3)])
    assert first.tolist() == [3, 4, 5] and second.tolist() == [[3, 4, 5]]


def test_a_graph_cut_at_any_length_is_refused():
    data = small_graph().serialized()
    for length in range(len(data)):
        with pytest.raises(GraphError):
            load_model(data[:length])


def load_and_run(data):
    """Nothing but the engine's errors may come of it."""
    try:
        load_model(data).run([torch.ones(3)])
    except (GraphError, KernelError) as error:
        return str(error)
    return ""


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_never_crash(changes):
    data = bytearray(small_graph().serialized())
    for position, byte in changes:
        data[position % len(data)] = byte
    load_and_run(bytes(data))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data):
    with pytest.raises(GraphError):
        load_model(data)


def broken(change):
    graph = Graph()
    graph.data(name="x")
    graph.const([1.0, 2.0, 3.0], name="c")
    graph.node("Add", x1="x:0", x2="c:0", name="add")
    graph.node("Mul", x1="add:0", x2="c:0", name="mul")
    graph.output("mul:0")
    x, c, add, mul, out = graph.graph.op
    change(dict(graph=graph.graph, model=graph.model, x=x, c=c, add=add, mul=mul, out=out))
    return graph.serialized()


def twin(op):
    """The node without its name."""
    made = type(op)()
    made.CopyFrom(op)
    made.ClearField("name")
    return made


def setting(node, field, value):
    def change(parts):
        if isinstance(value, list):
            getattr(parts[node], field)[:] = value
        else:
            setattr(parts[node], field, value)

    return change


def attr(node, name, field, value):
    return lambda parts: setattr(parts[node].attr[name], field, value)


MALFORMED = {
    "cycle": (setting("add", "input", ["mul:0", "c:0"]), "node 'add' .* is on a cycle through node 'mul'"),
    "self loop": (setting("add", "input", ["add:0", "c:0"]), "node 'add' .* is on a cycle"),
    "control self loop": (setting("add", "input", ["x:0", "c:0", "add:-1"]), "node 'add' .* is on a cycle"),
    "control cycle": (
        setting("add", "input", ["x:0", "c:0", "mul:-1"]),
        "node 'add' .* is on a cycle through node 'mul'",
    ),
    "reads NetOutput": (setting("add", "input", ["NetOutput:0", "c:0"]), "node 'add' .* 'NetOutput:0'.* has 0 outputs"),
    "unknown type": (setting("add", "type", "NoSuch"), "node 'add' .*no kernel for GE type NoSuch"),
    "no type": (setting("add", "type", ""), "node 'add' .*no kernel for GE type"),
    "missing node": (setting("add", "input", ["y:0", "c:0"]), "node 'add' .* reads 'y:0', but no node has that name"),
    "no output index": (setting("add", "input", ["x", "c:0"]), "node 'add' .* reads 'x', but no node has that name"),
    "output too large": (setting("mul", "input", ["add:1", "c:0"]), "node 'mul' .*'add:1'.*node 'add'.* has 1 outputs"),
    "output of an input": (setting("mul", "input", ["add:0", "x:1"]), "node 'mul' .*'x:1'.* has 1 outputs"),
    "output of a constant": (setting("mul", "input", ["add:0", "c:1"]), "node 'mul' .*'c:1'.* has 1 outputs"),
    "negative output": (setting("mul", "input", ["add:-2", "c:0"]), "node 'mul' .*'add:-2'"),
    "output no number": (setting("mul", "input", ["add:²", "c:0"]), "node 'mul' .*'add:²'"),
    "output of many digits": (setting("mul", "input", ["add:" + "9" * 5000, "c:0"]), "node 'mul' .*'add:9999"),
    "too few inputs": (setting("add", "input", ["x:0"]), "node 'add' .* has 1 inputs and 2 descriptors"),
    "too many inputs": (setting("add", "input", ["x:0", "c:0", "c:0"]), "node 'add' .* has 3 inputs and 2 descriptors"),
    "unfed required input": (setting("add", "input", ["x:0", ""]), "node 'add' .*input 'x2' is missing"),
    "misnamed input": (lambda p: setattr(p["add"].input_desc[1], "name", "x9"), "node 'add' .*'x2' is missing"),
    "input named twice": (lambda p: setattr(p["add"].input_desc[1], "name", "x1"), "node 'add' .*two inputs .*'x1'"),
    "unfed output": (setting("out", "input", [""]), "node 'NetOutput' .*input 0 is not fed"),
    "duplicate name": (setting("mul", "name", "add"), "two nodes are named 'add'"),
    "no NetOutput": (setting("out", "type", "Add"), "must have one NetOutput, got 0"),
    "two NetOutputs": (lambda p: p["graph"].op.add(name="other", type="NetOutput"), "must have one NetOutput, got 2"),
    "two graphs": (lambda p: p["model"].graph.add(), "must hold one graph, got 2"),
    "no graph": (lambda p: p["model"].ClearField("graph"), "must hold one graph, got 0"),
    "index of another kind": (attr("x", "index", "f", 0.5), "node 'x' .*no number in its attribute 'index'"),
    "index out of range": (attr("x", "index", "i", 1), r"the Data nodes take inputs \[1\]"),
    "negative index": (attr("x", "index", "i", -1), r"the Data nodes take inputs \[-1\]"),
    "input taken twice": (lambda p: p["graph"].op.add(name="z").MergeFrom(twin(p["x"])), "both take input 0"),
    "no output descriptor of an input": (lambda p: p["x"].ClearField("output_desc"), "node 'x' .*no descriptor"),
    "unknown attribute": (attr("add", "surprise", "i", 3), "node 'add' .*does not model attribute 'surprise' .*3"),
    "unknown attribute, a graph": (lambda p: p["add"].attr["surprise"].g.op.add(), "node 'add' .*kind 'g'"),
    "unknown attribute, empty": (lambda p: p["add"].attr["surprise"], "node 'add' .*kind None"),
    "list of graphs": (lambda p: p["add"].attr["surprise"].list.g.add(), "node 'add' .*list attribute of kind 'g'"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_graphs_are_refused_by_name(case):
    change, message = MALFORMED[case]
    data = broken(change)
    with pytest.raises(GraphError, match=message):
        load_model(data).run([torch.ones(3)])


@pytest.mark.parametrize(
    ("type", "attrs", "message"),
    [
        ("Unsqueeze", {"axes": 0}, "attribute 'axes' must be of kind list or .*, got i"),
        ("Unsqueeze", {"axes": "0"}, "attribute 'axes' must be of kind list or .*, got s"),
        ("Roll", {}, "attribute 'shifts' is missing"),
        ("FlattenV2", {"axis": "first"}, "attribute 'axis' must be of kind i .*, got s"),
        ("FlattenV2", {"axis": [1]}, "attribute 'axis' must be of kind i .*, got list"),
        ("Swish", {"scale": "big"}, "attribute 'scale' must be of kind f .*, got s"),
        ("Cast", {"dst_type": "float"}, "attribute 'dst_type' must be of kind dt .*, got s"),
        ("Cast", {"dst_type": Type(5)}, "GE data type 5 .*not modelled"),
        ("Cast", {}, "attribute 'dst_type' is missing"),
        ("Bitcast", {"type": Type(0), "keep_dim": [1]}, "attribute 'keep_dim' must be of kind b .*, got list"),
    ],
    ids=str,
)
def test_bad_attributes_are_refused_by_name(type, attrs, message):
    graph = Graph()
    graph.output(graph.node(type, x=graph.data(), attrs=attrs, name="it"))
    with pytest.raises(GraphError, match=f"node 'it' .GE type {type}.: .*{message}"):
        load_model(graph.serialized())


def test_what_a_kernel_refuses_names_the_node_and_its_inputs():
    graph = Graph()
    graph.output(graph.node("Add", x1=graph.data(), x2=graph.const([1.0, 2.0]), name="it"))
    with pytest.raises(KernelError, match="node 'it' .*x1: torch.float32 .3., x2: torch.float32 .2."):
        load_model(graph.serialized()).run([torch.ones(3)])


def test_a_result_of_another_dtype_than_torchair_described_is_refused():
    graph = Graph()
    x = graph.data()
    graph.output(graph.node("Neg", x=x, outputs=[("y", torch.int64)], fx_name="neg-aten.neg.default.OUTPUT.0"))
    with pytest.raises(
        KernelError, match="from neg-aten.*output 'y' must be DT_INT64, the kernel returned torch.float32"
    ):
        load_model(graph.serialized()).run([torch.ones(3)])


def test_a_dtype_that_the_definition_lacks_is_told_where_the_result_is_of_another_dtype():
    """As torchair lowers torch.linspace(0, 1, 5): the ends are whole numbers, the result is not."""
    graph = Graph()
    ends = {"start": graph.const(0), "stop": graph.const(1), "num": graph.const(5)}
    graph.output(graph.node("LinSpace", **ends, outputs=[("output", torch.float32)], fx_name="linspace.OUTPUT.0"))
    with pytest.raises(KernelError, match="GE's definition takes DT_FLOAT, DT_DOUBLE for 'start', the converter"):
        load_model(graph.serialized()).run([])


@pytest.mark.parametrize("control", [False, True])
def test_a_very_deep_chain(control):
    graph, depth = Graph(), 10_000
    last = x = graph.data()
    for _ in range(depth):
        last = graph.node("Neg", x=x, controls=[last]) if control else graph.node("Neg", x=last)
    (result,) = load_model(graph.output(last).serialized()).run([torch.ones(3)])
    assert result.tolist() == [-1.0] * 3 if control else [1.0] * 3


def test_a_very_long_cycle():
    graph, depth = Graph(), 10_000
    for at in range(depth):
        graph.node("Neg", x=f"n{(at + 1) % depth}:0", name=f"n{at}")
    with pytest.raises(GraphError, match="node 'n0' .* is on a cycle through node 'n9999'"):
        load_model(graph.output("n0:0").serialized())


def test_many_paths_do_not_take_long():
    graph = Graph()
    last = graph.data()
    for _ in range(200):  # 2**200 paths
        last = graph.node("Maximum", x1=last, x2=last)
    loaded = []
    thread = threading.Thread(target=lambda: loaded.append(load_model(graph.output(last).serialized())), daemon=True)
    thread.start()
    thread.join(30)
    assert loaded and loaded[0].run([torch.ones(3)])[0].tolist() == [1, 1, 1]


def test_what_the_output_does_not_need_is_not_held_against_the_graph():
    graph = small_graph()
    graph.node("NoSuch", x="mul:0")
    graph.node("Neg", x="lost:0", name="lost")  # reads itself
    assert load_model(graph.serialized()).run([torch.ones(3)])[0].tolist() == [3, 4, 5]


def test_dynamic_inputs_are_taken_by_number(kernels):
    @kernels("Many")
    def many(x: Tensors, axis: torch.Tensor | None = None) -> torch.Tensor:
        return torch.stack(x)

    graph = Graph()
    values = {f"x{at}": graph.const(float(at)) for at in (2, 10, 0, 1)}
    assert load_model(graph.output(graph.node("Many", **values)).serialized()).run([])[0].tolist() == [0, 1, 2, 10]


def test_every_type_of_the_table_has_its_own_numbers():
    assert len(set(PROTO_NUMBERS.values())) == len(PROTO_NUMBERS)
