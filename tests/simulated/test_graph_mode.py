"""Graph mode through the real torchair: the native node, each composed lowering, and what surrounds them."""

from __future__ import annotations

import re
import textwrap

import pytest
import torch
import torch_npu
import torchair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchair.ge import _ge_graph as ge_graph

import cases
import moe_graph
import reference
from moe_graph.engine import GraphError, KernelError, registry
from moe_graph.foundation import compat, contract
from moe_graph.testing import Sample, check_converter
from versions import need_tokens_dtype, need_torch


def backend(**dump):
    config = torchair.CompilerConfig()
    if dump:
        config.debug.graph_dump.type = dump["type"]
        config.debug.graph_dump.path = str(dump["path"])
    return torchair.get_npu_backend(compiler_config=config)


def on_npu(x):
    return None if x is None else x.npu()


def run(tokens, counts, dynamic=False, compiled=None, **arguments):
    """The operator on NPU tensors in graph mode; outputs on the CPU."""
    if compiled is None:
        compiled = torch.compile(
            lambda *a, **k: torch_npu.npu_moe_re_routing(*a, **k), backend=backend(), dynamic=dynamic, fullgraph=True
        )
    moved = {k: on_npu(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    outputs = compiled(tokens.npu(), counts.npu(), **moved)
    assert all(x.device.type == "npu" for x in outputs)
    return [x.cpu() for x in outputs]


def check(outputs, tokens, counts, arguments):
    reference.assert_matches(
        outputs,
        tokens,
        counts,
        arguments.get("per_token_scales"),
        arguments.get("expert_token_num_type", contract.COUNT),
        arguments.get("idx_type", contract.GATHER),
    )


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("scales", [None, "A"])
def test_native_call_is_one_node(lowered, scales, dynamic):
    tokens, counts = cases.make((20, 8), torch.bfloat16), cases.make_counts(3, 4, 20)
    arguments = {"per_token_scales": cases.make_scales(20, scales)}
    check(run(tokens, counts, dynamic, **arguments), tokens, counts, arguments)
    types = [t for t in lowered[0].node_types if t != "Data"]
    assert types == ["MoeReRouting", "NetOutput"]


def test_one_graph_serves_every_token_count(lowered):
    compiled = torch.compile(
        lambda *a, **k: torch_npu.npu_moe_re_routing(*a, **k), backend=backend(), dynamic=True, fullgraph=True
    )
    for count in (10, 2, 57):
        tokens, counts = cases.make((count, 8), torch.int8), cases.make_counts(3, 4, count, seed=count)
        arguments = {"per_token_scales": cases.make_scales(count, "A")}
        check(run(tokens, counts, compiled=compiled, **arguments), tokens, counts, arguments)
    assert len(lowered) == 1


@pytest.mark.parametrize("kind", ["txt", "pbtxt", "py"])
def test_dumps(lowered, kind, tmp_path):
    compiled = torch.compile(
        lambda t, c: torch_npu.npu_moe_re_routing(t, c), backend=backend(type=kind, path=tmp_path), fullgraph=True
    )
    tokens, counts = cases.make((20, 8), torch.int8), cases.make_counts(3, 4, 20)
    check(run(tokens, counts, compiled=compiled), tokens, counts, {})
    dumps = {path.name: path.read_text() for path in tmp_path.iterdir()}
    pattern = {"txt": 'type: "MoeReRouting"', "pbtxt": 'op: "MoeReRouting"', "py": "ge.MoeReRouting("}[kind]
    assert dumps and all(text.count(pattern) == 1 for text in dumps.values()), list(dumps)


FLOAT4 = getattr(torch, "float4_e2m1fn_x2", None)


def describes(dtype):
    """Does torchair describe tensors of the dtype to GE? Not those of float4_e2m1fn_x2: see test_float4_tokens_are_refused."""
    try:
        ge_graph._ge_dtype_to_ge_proto_dtype(ge_graph.torch_type_to_ge_type(dtype))
    except (RuntimeError, ValueError):
        return False
    return dtype != FLOAT4


# What of the call the kernel lacks -> (product, tokens' shape and dtype, arguments,
# types of the composed graph beside Data, Const, NetOutput)
COMPOSED = {
    "cumsum": ("A2", (20, 8), torch.int8, dict(expert_token_num_type=0), ["Cumsum", "MoeReRouting"]),
    "scatter": ("A2", (20, 8), torch.int8, dict(idx_type=1), ["Fill", "MoeReRouting", "MoeReRouting", "Transpose"]),
    "scatter on 950": ("950", (20, 8), torch.int8, dict(idx_type=1), ["MoeReRouting"]),
    "float32": ("A2", (20, 8), torch.float32, {}, ["Bitcast", "Bitcast", "MoeReRouting", "Reshape", "Reshape"]),
    "int64": ("A2", (20, 8), torch.int64, {}, ["Bitcast", "Bitcast", "MoeReRouting", "Reshape", "Reshape"]),
    "int16": ("A2", (20, 8), torch.int16, {}, ["Bitcast", "Bitcast", "MoeReRouting"]),
    "uint8": ("A2", (20, 8), torch.uint8, {}, ["Bitcast", "Bitcast", "MoeReRouting"]),
    "bool": ("A2", (20, 8), torch.bool, {}, ["Bitcast", "Bitcast", "MoeReRouting"]),
    "float8 on A2": ("A2", (20, 8), torch.float8_e4m3fn, {}, ["Bitcast", "Bitcast", "MoeReRouting"]),
    "float8 on 950": ("950", (20, 8), torch.float8_e5m2, {}, ["MoeReRouting"]),
    "long rows": ("A2", (20, 16384), torch.int8, {}, ["Fill", "GatherV2", "MoeReRouting"]),
    "longest rows": ("A2", (20, 16383), torch.int8, {}, ["MoeReRouting"]),
    "long rows of float32": ("A2", (20, 8192), torch.float32, {}, ["Fill", "GatherV2", "MoeReRouting"]),
    "longest rows of float32": (
        "A2",
        (20, 8191),
        torch.float32,
        {},
        ["Bitcast", "Bitcast", "MoeReRouting", "Reshape", "Reshape"],
    ),
    "long rows of float8": (
        "950",
        (20, 16384),
        torch.float8_e5m2,
        {},
        ["Bitcast", "Bitcast", "Fill", "GatherV2", "MoeReRouting"],
    ),
    "scales [A, S] on A2": ("A2", (20, 8), torch.int8, dict(scales="A,S"), ["GatherV2", "MoeReRouting"]),
    "scales [A, S] on 950": ("950", (20, 8), torch.int8, dict(scales="A,S"), ["MoeReRouting"]),
    "e8m0 bytes on A3": ("A3", (20, 8), torch.int8, dict(scales="A,K/64,2 bytes"), ["GatherV2", "MoeReRouting"]),
    "e8m0 bytes on 950": (
        "950",
        (20, 8),
        torch.int8,
        dict(scales="A,K/64,2 bytes"),
        ["Bitcast", "Bitcast", "MoeReRouting"],
    ),
    "e8m0 on 950": ("950", (20, 8), torch.int8, dict(scales="A,K/64,2"), ["MoeReRouting"]),
    "hifloat8 on 950": ("950", (20, 8), torch.uint8, dict(tokens_dtype=290), ["Bitcast", "Bitcast", "MoeReRouting"]),
    "hifloat8 on A2": ("A2", (20, 8), torch.uint8, dict(tokens_dtype=290), ["Bitcast", "Bitcast", "MoeReRouting"]),
    "float4 on 950": (
        "950",
        (20, 8),
        torch.uint8,
        dict(tokens_dtype=296),
        ["Bitcast", "Bitcast", "MoeReRouting", "Reshape", "Reshape"],
    ),
    "float4 on A2": ("A2", (20, 8), torch.uint8, dict(tokens_dtype=297), ["Bitcast", "Bitcast", "MoeReRouting"]),
    "all at once": (
        "A2",
        (20, 9000),
        torch.float64,
        dict(scales="A,S", idx_type=1, expert_token_num_type=0),
        ["Cumsum", "Fill", "Fill", "GatherV2", "GatherV2", "MoeReRouting", "MoeReRouting", "Transpose"],
    ),
    "all at once on 950": (
        "950",
        (20, 16384),
        torch.bfloat16,
        dict(scales="A", idx_type=1, expert_token_num_type=0),
        ["Cumsum", "Fill", "Fill", "GatherV2", "MoeReRouting", "MoeReRouting", "Transpose"],
    ),
}


# Calls of one product and H, checked together: H decides, one dynamic graph does not serve several.
CHECKED = {}
for name in COMPOSED:
    CHECKED.setdefault(f"{COMPOSED[name][0]}, H = {COMPOSED[name][1][1]}", []).append(name)


def exists(dtype, arguments):
    """Do this torch and torch_npu have the call?"""
    has_argument = compat.has_argument(contract.operator(), "tokens_dtype")
    return describes(dtype) and ("tokens_dtype" not in arguments or has_argument)


@pytest.mark.parametrize("names", CHECKED.values(), ids=CHECKED)
def test_composed_lowering(lowered, product, names):
    """The converter passes every check, on its own and with one graph for two numbers of tokens, and makes these nodes."""
    need_torch(2, 7)
    names = [name for name in names if exists(COMPOSED[name][2], COMPOSED[name][3])]
    samples = []
    for name in names:
        chip, (count, hidden), dtype, arguments, _ = COMPOSED[name]
        product(chip)
        arguments = dict(arguments)
        scales = arguments.pop("scales", None)
        for rows in (count, 7):
            given = {"per_token_scales": cases.make_scales(rows, scales)} if scales else {}
            tokens, counts = cases.make((rows, hidden), dtype), cases.make_counts(3, 4, rows, torch.int64)
            samples.append(Sample((tokens, counts), {**arguments, **given}))
    report = check_converter(
        contract.operator(), samples, rtol=0, atol=0, opcheck=False, captured=False, reference=reference.as_operator
    )
    assert not [fault for fault in report.faults if "no sample gives" not in fault.fault], report
    static, dynamic = lowered[: 2 * len(names) : 2], lowered[2 * len(names) :]
    plumbing = {"Data", "Const", "NetOutput"}
    of_shapes = plumbing | {"Shape", "ConcatV2", "GatherV2"}  # shapes are computed in the graph
    for name, one, other in zip(names, static, dynamic, strict=True):
        types = COMPOSED[name][-1]
        assert sorted(t for t in one.node_types if t not in plumbing) == types, name
        assert [t for t in sorted(other.node_types) if t not in of_shapes] == [t for t in types if t != "GatherV2"], (
            name
        )


GRAPH_DTYPES = [dtype for dtype in cases.ALL_DTYPES if describes(dtype)]


# Before torch 2.7 converters are not checked above.
@settings(
    max_examples=6 if compat.TORCH >= (2, 7) else 25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(cases.calls(GRAPH_DTYPES, max_tokens=20), st.sampled_from(["A2", "950"]), st.booleans())
def test_random_calls(product, call, name, dynamic):
    tokens, counts, arguments = call
    product(name)
    torch._dynamo.reset()
    check(run(tokens, counts, dynamic, **arguments), tokens, counts, arguments)


def test_no_tokens(lowered):
    tokens, counts = torch.empty(0, 8, dtype=torch.int8), torch.zeros(3, 4, dtype=torch.int32)
    check(run(tokens, counts), tokens, counts, {})


def test_un_routing_is_one_node(lowered):
    tokens, counts = cases.make((20, 8), torch.bfloat16), cases.make_counts(3, 4, 20)
    routed = moe_graph.moe_re_routing(tokens, counts).permute_tokens
    compiled = torch.compile(lambda t, c: moe_graph.moe_un_routing(t, c).tokens, backend=backend(), fullgraph=True)
    assert (reference.as_bytes(compiled(routed.npu(), counts.npu())) == reference.as_bytes(tokens)).all()
    assert lowered[0].node_types.count("MoeReRouting") == 1
    assert not {"Sort", "GatherV2", "ArgSort"} & set(lowered[0].node_types)


class Block(torch.nn.Module):
    """Casts, shapes, arithmetic and matrix products around the operator."""

    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(8, 16)
        self.down = torch.nn.Parameter(torch.randn(16, 8) / 4)

    def forward(self, x, counts):
        tokens = (x * 2 + 1).to(torch.bfloat16).reshape(-1, 8)
        routed = moe_graph.moe_re_routing(tokens, counts)
        hidden = torch.relu(self.up(routed.permute_tokens.float()))
        out = (hidden @ self.down).to(torch.bfloat16)
        back = moe_graph.moe_un_routing(out, counts).tokens
        return back.float().t() + routed.expert_token_num.sum(), routed.permute_token_idx


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_operators_around_it(lowered, dynamic):
    torch.manual_seed(0)
    model, x, counts = Block(), torch.randn(4, 5, 8), cases.make_counts(3, 4, 20)
    expected = model(x, counts)
    compiled = torch.compile(Block().npu(), backend=backend(), dynamic=dynamic, fullgraph=True)
    compiled.load_state_dict({f"_orig_mod.{k}": v for k, v in model.state_dict().items()})
    with torch.no_grad():
        outputs = compiled(x.npu(), counts.npu())
    torch.testing.assert_close(outputs[0].cpu(), expected[0], rtol=2e-2, atol=2e-2)
    assert torch.equal(outputs[1].cpu(), expected[1])
    assert lowered[0].node_types.count("MoeReRouting") == 2


def test_gradients_in_graph_mode(lowered):
    x, counts = torch.randn(20, 8), cases.make_counts(3, 4, 20)
    leaf = x.half().npu().requires_grad_()

    def loss(x, counts):
        return (moe_graph.moe_re_routing(x, counts).permute_tokens * 2).sum()

    torch.compile(loss, backend=backend(), fullgraph=True)(leaf, counts.npu()).backward()
    assert torch.equal(leaf.grad.cpu(), torch.full((20, 8), 2.0).half())
    assert sum(program.node_types.count("MoeReRouting") for program in lowered) == 2


def test_bad_input_is_refused_while_tracing():
    tokens, counts = torch.zeros(20, 8, dtype=torch.int8), cases.make_counts(3, 4, 20)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.TorchRuntimeError, match="per_token_scales must be of length A = 20"):
        run(tokens, counts, per_token_scales=torch.zeros(19))


@pytest.mark.skipif(FLOAT4 is None, reason="this torch has no float4_e2m1fn_x2")
def test_float4_tokens_are_refused(product):
    need_torch(2, 11)
    need_tokens_dtype()
    product("950")
    tokens, counts = cases.make((20, 8), FLOAT4), cases.make_counts(3, 4, 20)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="a row has 8 float4 .* Give tokens.view.torch.uint8. with tokens_dtype=296"):
        run(tokens, counts)
    expected = moe_graph.moe_re_routing(tokens, counts).permute_tokens
    routed = run(tokens.view(torch.uint8), counts, tokens_dtype=296)[0].cpu()
    assert torch.equal(routed, expected.view(torch.uint8))


def test_unknown_node_names_its_type_and_its_fx_source(monkeypatch):
    monkeypatch.delitem(registry._kernels, "Mul")
    torch._dynamo.reset()

    def function(x):
        return x * x + 1  # this line is named

    with pytest.raises(GraphError, match="the host engine has no kernel for GE type Mul") as raised:
        torch.compile(function, backend=backend())(torch.ones(3).npu())
    message = str(raised.value)
    assert re.search(r"node 'Mul(_\d+)?' \(GE type Mul, from mul-aten\.mul\.Tensor\.OUTPUT\.0", message)
    assert 'test_graph_mode.py", line' in message and "return x * x + 1" in message
    # Three lines add the kernel; with what is GE's definition of Mul they do.
    recipe = message.partition("in your program:\n")[2].splitlines()
    lines = textwrap.dedent("\n".join(recipe[:3]))
    lines = lines.replace("x: torch.Tensor, *, attribute: int = 0", "x1: torch.Tensor, x2: torch.Tensor")
    exec(lines.replace("return ...", "return x1 * x2"), {"moe_graph": moe_graph, "torch": torch, "__name__": "program"})
    torch._dynamo.reset()
    assert torch.compile(function, backend=backend())(torch.full((3,), 3.0).npu()).tolist() == [10, 10, 10]


def test_failing_node_names_its_shapes_and_its_fx_source(monkeypatch):
    def broken(x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
        raise ValueError("out of order")

    monkeypatch.setitem(registry._kernels, "Mul", registry._describe(broken))
    torch._dynamo.reset()
    with pytest.raises(KernelError, match="x1: torch.float32 .3., x2: torch.float32 .3.: out of order") as raised:
        torch.compile(lambda x: x * x, backend=backend())(torch.ones(3).npu())
    assert "mul-aten.mul.Tensor.OUTPUT.0" in str(raised.value) and "test_graph_mode.py" in str(raised.value)
