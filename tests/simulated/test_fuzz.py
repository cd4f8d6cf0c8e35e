"""Random programs: what torchair lowers them to and the engine computes is what PyTorch computes on the CPU.

A program is Python source, drawn statement by statement from a table of expressions; statements that PyTorch refuses, or that leave
small finite numbers, are not drawn. MOE_GRAPH_FUZZ=N draws N programs of each kind at random (default: a few, always the same).
"""

from __future__ import annotations

import itertools
import os
import re
import string
import warnings
from dataclasses import dataclass

import pytest
import torch
import torchair
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import moe_graph
import versions
from moe_graph.converters import known
from moe_graph.engine import registry

EXAMPLES = int(os.environ.get("MOE_GRAPH_FUZZ", 0))

# Fields: f a float tensor, x one whose values are exact (no rounding has gone into them: for operators that jump), i int64,
# b bool, n float or int64, v any; m a whole number and r a real one, which are arguments of the program; dim a dimension of the first
# operand; k a truth value. f1 is another f, or the same.
# After "|" GE types of its lowering that the engine may lack a kernel for: it is drawn once all of them have one.
# Not in it: amax, amin, all(dim), var(correction=...) and roll, which torchair declares and does not lower; index_select of a scalar,
# which it lowers to a GatherV2 along an axis the scalar does not have; sort of a scalar, which it asks for its first size;
# gelu without approximate="tanh", which it lowers as with; an index that is a scalar, whose value Dynamo asks for;
# == of two dtypes, which it refuses; l1_loss, smooth_l1_loss, kl_div and binary_cross_entropy, which it does not lower, nor group_norm
# with dynamic shapes.
_TABLE = """
{n} + {n1}
{n} - {n1}
{n} * {n1}
{n} * 2 - 3
{f} * 0.5 + 0.25
1 - {n}  | Sxpy
-{n}
{f} + {i}
{f} * {b}
{f} / ({f1} * {f1} + 1)
{f} / 3
torch.add({f}, {f1}, alpha=0.5)  | AxpyV2
torch.sub({i}, {i1}, alpha=2)
torch.maximum({x}, {x1})
torch.minimum({x}, {x1})
torch.maximum({i}, {i1})
torch.minimum({i}, {i1})
torch.relu({f})
torch.sigmoid({f})
torch.tanh({f})
torch.exp({f} * 0.125)
torch.nn.functional.silu({f})
torch.nn.functional.gelu({f}, approximate='tanh')  | Gelu
torch.nn.functional.leaky_relu({f}, 0.5)  | LeakyRelu
torch.softmax({f}, {dim})
torch.log_softmax({f}, {dim})  | LogSoftmaxV2
torch.rsqrt({f} * {f} + 1)  | Rsqrt
torch.sqrt({f} * {f} + 1)  | Sqrt
torch.log({f} * {f} + 1)  | Log
torch.reciprocal({f} * {f} + 1)  | Reciprocal
torch.erf({f})  | Erf
torch.sin({f})  | Sin
torch.cos({f})  | Cos
torch.abs({n})  | Abs
torch.square({n})  | Pow
torch.pow({n}, 2)  | Pow
torch.pow({f} * {f} + 1, 0.5)  | Pow
torch.floor({x})  | Floor
torch.ceil({x})  | Ceil
torch.round({x})  | Round
torch.sign({x})  | Sign
torch.clamp({n}, -1, 1)  | ClipByValueV2
torch.clamp({n}, min=0)  | ClipByValueV2
torch.clamp({n}, max=2)  | ClipByValueV2
torch.floor_divide({i}, 3)
torch.div({i}, 2)
torch.remainder({i}, 3)  | FloorMod
{x} > {x1}  | Greater
{x} <= {x1}  | LessEqual
{x} == {x1}.to({x}.dtype)  | Equal
{i} < {i1}  | Less
{i} >= 1  | GreaterEqual
{i} != {i1}  | NotEqual
{b} & {b1}  | LogicalAnd
{b} | {b1}  | LogicalOr
~{b}  | LogicalNot
torch.logical_not({b})  | LogicalNot
torch.where({b}, {n}, {n1})  | SelectV2
torch.where({b}, {f}, 0.5)  | SelectV2
torch.masked_fill({f}, {b}, 0.5)  | MaskedFill
{n}.sum()
{n}.sum({dim}, keepdim={k})
{b}.sum({dim})
{f}.mean({dim}, keepdim={k})
{f}.mean()
{x}.max({dim}, keepdim={k})[0]  | ArgMaxWithValue
{b}.any({dim})  | ReduceAny
{i}.cumsum({dim})
{f}.cumsum({dim})
torch.argmax({x}.cumsum({dim}) + 0 * {x}, {dim})  | ArgMaxV2
{v}.to(torch.float32)
{n}.to(torch.bfloat16)
{b}.to(torch.int64)
{x}.to(torch.int64)
{n}.to(torch.bool)
{v}.reshape(-1)
{v}.flatten(-2)  | Gather
{v}.unsqueeze({dim})
{v}.unsqueeze(-1)
{v}.squeeze()
{v}.transpose(0, -1)
{v}.t()
({n}.transpose(0, -1) * 2).transpose(0, -1).reshape(-1)
({n}.transpose(0, -1) + 1).transpose(0, -1).flatten(-2).unsqueeze(0)  | Gather
({n}.reshape({n}.shape[-1], -1).t() * 2).t().reshape({n}.shape)  | Gather
{v}.permute(2, 0, 1)
{v}.expand(2, *{v}.shape)  | Gather
{v}.repeat(2, *[1] * {v}.dim())
{v}.contiguous()
{v}.clone()
{v}[0]
{v}[..., -1]
{v}[..., 1:]  | StridedSliceV2
{v}[..., ::2]  | StridedSliceV2
{v}[None]
torch.narrow({v}, {dim}, 0, 1)  | StridedSliceV2
torch.cat([{n}, {n1}], {dim})
torch.cat([{b}, {b1}], {dim})
torch.stack([{n}, {n1}], {dim})
torch.split({v}, 1, {dim})[-1]
torch.chunk({v}, 2, {dim})[0]  | Gather
torch.unbind({v}, {dim})[0]
torch.flip({n}, [{dim}])  | ReverseV2
torch.select({v}, {dim}, -1)
torch.index_select({n}[None], 0, torch.zeros_like({n}.reshape(-1), dtype=torch.int64))  | ZerosLike
{n}[{i}.reshape(-1) * 0]  | IndexByTensor
torch.gather({n}, {dim}, torch.zeros_like({n}, dtype=torch.int64))  | GatherElements ZerosLike
torch.take_along_dim({n}, torch.argsort({i}[None], {dim})[0] * 0, {dim})  | FloorMod GatherElements Sort
torch.sort({i}[None], {dim})[0]  | Sort
torch.topk({i}, 1, {dim})[0]  | TopKV2
torch.nn.functional.one_hot({i} * 0 + 1, 3)  | Equal
torch.nn.functional.pad({f}, (1, 2))  | PadV3
torch.nn.functional.layer_norm({f}, {f}.shape[-1:])  | Gather LayerNormV4
torch.zeros_like({v})  | ZerosLike
torch.ones_like({f}) * {f}  | OnesLike
torch.full_like({f}, 0.5)
torch.arange({v}.shape[0], device={v}.device)  | Gather
torch.zeros({v}.shape, device={v}.device) + {f}  | Gather
torch.tril({f})  | Tril
torch.triu({f}, 1)  | Triu
{f} @ {f1}
{f} @ {f1}.transpose(-1, -2)
torch.nn.functional.linear({f}, {f1})
torch.outer({f}, {f1})  | Gather
{n} * {m}
{n} + {m} * 2 - 1
{f} / {m}
{i} * {m} - {i1}
{x} > {m} - 3  | Greater
torch.clamp({n}, max={m})  | ClipByValueV2
torch.full_like({f}, {m})
torch.where({b}, {f}, {m})  | SelectV2
torch.arange({m}, device={v}.device)
torch.zeros({m}, 2, device={f}.device) + {f}.sum()
{v}.repeat({m}, *[1] * {v}.dim())
{v}.unsqueeze(0).expand({m}, *{v}.shape)  | Gather
{v}.unsqueeze(0).repeat({m}, *[1] * {v}.dim())[{m} - 1]
{f} * {r}
{f} + ({r} + 1)
{f} / {r}
torch.add({f}, {f1}, alpha={r})  | AxpyV2
torch.masked_fill({f}, {b}, {r})  | MaskedFill
torch.nn.functional.layer_norm({f}, {f}.shape[-1:], {f}.reshape(-1, {f}.shape[-1])[0], {f}.reshape(-1, {f}.shape[-1])[0])  | LayerNormV4
torch.nn.functional.batch_norm({f}[None], {f}.flatten(1).sum(1), {f}.flatten(1).square().sum(1) + 1)  | BNInfer
torch.nn.functional.mse_loss({f}, {f1})
torch.nn.functional.cross_entropy({f}.reshape(-1, {f}.shape[-1]), {f}.reshape(-1, {f}.shape[-1]).argmax(-1) * 0)  | NLLLoss
""".strip().splitlines()

EXPRESSIONS = [
    line.partition("  | ")[0]
    for line in _TABLE
    if set(line.partition("  | ")[2].split()) <= set(registry.known_types())
]

# Two settings of the sizes: a dynamic graph serves both.
SIZES = ({"A": 2, "B": 3, "C": 5}, {"A": 4, "B": 6, "C": 3})
KINDS = {"f": (torch.float32, torch.bfloat16, torch.float16), "i": (torch.int64,), "b": (torch.bool,)}
KINDS["x"], KINDS["n"] = KINDS["f"], (*KINDS["f"], torch.int64)
KINDS["m"], KINDS["r"] = (int,), (float,)
KINDS["v"] = (*KINDS["n"], torch.bool)
LARGEST = 1000  # larger numbers are not drawn


@dataclass
class Value:
    """A variable of a program: its name, its tensor (or number) for each of SIZES, and whether no rounding has gone into it."""

    name: str
    tensors: tuple
    exact: bool = True

    @property
    def dtype(self):
        """Of a number its Python type."""
        return self.tensors[0].dtype if isinstance(self.tensors[0], torch.Tensor) else type(self.tensors[0])

    def on(self, at: int, device: str):
        """A copy for one of SIZES on a device; a number as it is."""
        value = self.tensors[at]
        return value.clone().to(device) if isinstance(value, torch.Tensor) else value


@dataclass
class Program:
    """A drawn program: its source, and what it takes and returns for each of SIZES."""

    source: str
    inputs: list[Value]
    outputs: list[Value]
    largest: float  # magnitude on the way
    rounds_to: torch.dtype  # the coarsest dtype on the way

    def _repr_pretty_(self, printer, cycle) -> None:
        """Hypothesis prints a failing program so."""
        taken = ", ".join(f"{v.name}: {v.dtype} {list(getattr(v.tensors[0], 'shape', ()))}" for v in self.inputs)
        printer.text(f"\n# {taken}\n{self.source}\n")

    def function(self):
        space = {"torch": torch}
        exec(self.source, space)
        return space["program"]


def legal(text, operands, name):
    """The value of an expression, or None if it is not to be drawn."""
    try:
        results = [
            eval(text, {"torch": torch, **{v.name: v.tensors[at] for v in operands}}) for at in range(len(SIZES))
        ]
    except (RuntimeError, IndexError, TypeError, ValueError):
        return None
    for result in results:
        if result.dtype not in KINDS["v"] or not 0 < result.numel() <= 400 or result.dim() > 4:
            return None
        if not result.double().isfinite().all() or result.double().abs().max() > LARGEST:
            return None
    if re.search(r"@|linear\(", text) and not results[0].dim() and not versions.lowers_products_of_vectors():
        return None
    exact = all(v.exact for v in operands)
    if exact and any(v.dtype in KINDS["f"] for v in operands):
        wide = {v.name: v.tensors[0].double() if v.dtype in KINDS["f"] else v.tensors[0] for v in operands}
        try:
            exact = torch.equal(eval(text, {"torch": torch, **wide}).double(), results[0].double())
        except RuntimeError:  # the text mixes its operands with float32
            exact = False
    return Value(name, tuple(results), exact)


def choices(expression, values, name):
    """Every legal (text, value) of an expression over these values."""
    fields = sorted({field for _, field, _, _ in string.Formatter().parse(expression) if field})
    operands = [field for field in fields if field not in ("dim", "k")]
    for chosen in itertools.product(
        *([v for v in values if v.dtype in KINDS[f[0]] and (v.exact or f[0] != "x")] for f in operands)
    ):
        names = dict(zip(operands, (v.name for v in chosen)))
        rank = max(getattr(chosen[0].tensors[0], "ndim", 0), 1)
        dims = range(-rank, rank) if "dim" in fields else [0]
        for dim, k in itertools.product(dims, (False, True) if "k" in fields else (False,)):
            text = expression.format(**names, dim=dim, k=k)
            made = legal(text, chosen, name)
            if made is not None:
                yield text, made


def make_input(name, dtype, dims, seed):
    """Exact values: quarters in [-2, 2], or whole numbers in [-4, 4]."""
    tensors = []
    for sizes in SIZES:
        shape = [sizes.get(dim, 1) for dim in dims]
        whole = torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed))
        tensors.append((whole / 4).to(dtype) if dtype.is_floating_point else (whole // 2).to(dtype))
    return Value(name, tuple(tensors))


NUMBERS = (Value("m", (3, 5)), Value("r", (0.5, -1.25)))
# What is written into an input at the end of a program: {t} the input, {s} a value of its shape and dtype.
WRITES = ("{t}.copy_({s})", "{t}.add_({s})", "{t}[...] = {s}", "{t}.mul_(2)", "{t}.zero_()")
FLOAT32_MOST = st.sampled_from([torch.float32] * 3 + [torch.bfloat16, torch.float16, torch.int64, torch.bool])
DIMS = st.lists(st.sampled_from("ABC1"), max_size=3)


@st.composite
def writes(draw, inputs, values):
    """A statement that writes into an input; values that are not exact are not written, so that the tolerance stays that of the program."""
    target = draw(
        st.sampled_from(
            [v for v in inputs if isinstance(v.tensors[0], torch.Tensor) and v.dtype != torch.bool] or inputs[:1]
        )
    )
    sources = [
        v
        for v in values
        if v.dtype == target.dtype and all(a.shape == b.shape for a, b in zip(v.tensors, target.tensors))
    ]
    text = draw(st.sampled_from(WRITES)) if target.dtype != torch.bool else WRITES[0]
    return "    " + text.format(t=target.name, s=draw(st.sampled_from(sources)).name)


@st.composite
def programs(draw, tensors_only=False):
    """`tensors_only`: no numbers among the inputs, no writes to them, no output twice."""
    inputs = [make_input(f"v{at}", draw(FLOAT32_MOST), draw(DIMS), seed=at) for at in range(draw(st.integers(1, 3)))]
    if not tensors_only:
        inputs += draw(st.lists(st.sampled_from(NUMBERS), unique_by=lambda v: v.name, max_size=2))
    first, values, lines, read = len(inputs), list(inputs), [], set()
    for _ in range(draw(st.integers(3, 8))):
        name = f"v{len(values) + 3}"
        for _ in range(8):  # an expression that fits what there is
            found = list(choices(draw(st.sampled_from(EXPRESSIONS)), values, name))
            if found:
                text, made = found[draw(st.integers(0, len(found) - 1))]
                lines.append(f"    {name} = {text}")
                values.append(made)
                read |= set(re.findall(r"\bv\d+\b", text))
                break
    outputs = [v for v in values[first:] if v.name not in read] or values[first:][-1:] or inputs[:1]
    if not tensors_only and draw(st.booleans()):  # an input, and a value once more: outputs that are the same memory
        outputs = [*outputs, draw(st.sampled_from(inputs)), outputs[0]]
    if not tensors_only and draw(st.booleans()):
        lines += draw(st.lists(writes(inputs, values), max_size=2))
    head = f"def program({', '.join(v.name for v in inputs)}):"
    source = "\n".join([head, *lines, f"    return {', '.join(v.name for v in outputs)},"])
    largest = max(torch.as_tensor(t).double().abs().max().item() for v in values for t in v.tensors)
    rounds_to = max({v.dtype for v in values} & set(KINDS["f"]) | {torch.float32}, key=lambda t: torch.finfo(t).eps)
    return Program(source, inputs, outputs, max(largest, 1.0), rounds_to)


def check(program, dynamic):
    """The graph's results are the CPU's. Of what torchair is known to lower otherwise this is checked where its views are not merged."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        known.forget()
        try:
            compare(program, dynamic)
        except AssertionError:
            if not any(issubclass(warning.category, known.TorchairWarning) for warning in told):
                raise
    entries = {w.message.entry.operators for w in told if issubclass(w.category, known.TorchairWarning)}
    if any("aten.reshape.default" in operators for operators in entries):
        config = torchair.CompilerConfig()
        config.experimental_config.enable_view_optimize = False
        with warnings.catch_warnings():
            warnings.simplefilter("error", known.TorchairWarning)
            compare(program, dynamic, config)


def compare(program, dynamic, config=None):
    torch._dynamo.reset()
    function = program.function()
    backend = torchair.get_npu_backend(compiler_config=config or torchair.CompilerConfig())
    compiled = torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)
    for at in range(len(SIZES) if dynamic else 1):
        on_cpu, on_npu = ([value.on(at, device) for value in program.inputs] for device in ("cpu", "npu"))
        expected, results = function(*on_cpu), compiled(*on_npu)
        exact = all(value.exact for value in program.outputs)
        for name, got, wanted in zip(
            [v.name for v in (*program.outputs, *program.inputs)],
            (*results, *on_npu),
            (*expected, *on_cpu),
            strict=True,
        ):
            # Sums in another order, and decompositions that round elsewhere, differ by a few units of the largest number.
            tolerance = 0.0 if exact else 16 * torch.finfo(program.rounds_to).eps
            try:
                assert isinstance(got, torch.Tensor) == isinstance(wanted, torch.Tensor)
                torch.testing.assert_close(
                    torch.as_tensor(got).cpu(),
                    torch.as_tensor(wanted),
                    rtol=tolerance,
                    atol=tolerance * program.largest,
                )
            except AssertionError as error:
                report = moe_graph.compare_graph(function, *(v.on(at, "cpu") for v in program.inputs), dynamic=dynamic)
                raise AssertionError(f"{name}: {error}\n{report}") from error


def fuzzed(test, default, tensors_only=False):
    """The settings of a test over random programs."""
    how = dict(max_examples=EXAMPLES or default, derandomize=not EXAMPLES, database=None, deadline=None)
    how["report_multiple_bugs"] = False
    if not EXAMPLES:
        how["phases"] = [Phase.generate, Phase.shrink]
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(suppress_health_check=checks, **how)(given(programs(tensors_only))(test))


def of_random_programs(default, tensors_only=False):
    return lambda test: fuzzed(test, default, tensors_only)


@of_random_programs(20)
def test_static(program):
    check(program, dynamic=False)


@of_random_programs(15)
def test_dynamic(program):
    check(program, dynamic=True)


@of_random_programs(25, tensors_only=True)
def test_captured(program):
    """Captured over inputs of zeros and replayed on the program's, eager and captured are the same bits."""
    function = program.function()
    inputs = [value.tensors[0] for value in program.inputs]
    eager = function(*(x.clone().npu() for x in inputs))
    places = [torch.zeros_like(x).npu() for x in inputs]
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        results = function(*places)
    for _ in range(2):  # the program may write to its inputs
        for place, x in zip(places, inputs, strict=True):
            place.copy_(x)
        graph.replay()
        for result, expected in zip(results, eager, strict=True):
            assert torch.equal(result.cpu().nan_to_num(), expected.cpu().nan_to_num())


@of_random_programs(6, tensors_only=True)
def test_captured_by_torchair(program):
    torch._dynamo.reset()
    config = torchair.CompilerConfig()
    config.mode = "reduce-overhead"
    function = program.function()
    compiled = torch.compile(function, backend=torchair.get_npu_backend(compiler_config=config), dynamic=False)
    inputs = [value.tensors[0] for value in program.inputs]
    eager = function(*(x.clone().npu() for x in inputs))
    for _ in range(2):
        for result, expected in zip(compiled(*(x.clone().npu() for x in inputs)), eager, strict=True):
            torch.testing.assert_close(result.cpu(), expected.cpu(), rtol=1e-5, atol=1e-5 * program.largest)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_wrong_kernel_is_found_and_named(monkeypatch, dynamic):
    def tanh(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * (1 + 1e-4)

    x = make_input("v0", torch.float32, "AB", 0)
    value = legal("torch.relu(torch.tanh(v0 * 2) + 1)", [x], "v1")
    source = "def program(v0):\n    return torch.relu(torch.tanh(v0 * 2) + 1),"
    program = Program(source, [x], [value], 3.0, torch.float32)
    check(program, dynamic)
    monkeypatch.setitem(registry._kernels, "Tanh", registry._describe(tanh))
    with pytest.raises(AssertionError, match=r"v1: .*\n(.*\n)*first: .*FX node 'tanh'"):
        check(program, dynamic)


def test_each_expression_can_be_drawn():
    """An expression that no program can hold would be dead weight."""
    values = [
        make_input(f"v{at}", dtype, dims, seed=at)
        for at, (dtype, dims) in enumerate(itertools.product(KINDS["v"], ("", "B", "AB", "ABC")))
    ]
    values += NUMBERS
    dead = [text for text in EXPRESSIONS if next(choices(text, values, "y"), None) is None]
    assert not dead


@pytest.mark.skipif(not EXAMPLES, reason="set MOE_GRAPH_FUZZ=N")
@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_each_expression_alone(expression, dynamic):
    """One statement, over the first operands that fit it: which expression fails, where a random program has many."""
    values = [make_input("v0", torch.float32, "BA", 0), make_input("v1", torch.int64, "BA", 1)]
    values += [make_input("v2", torch.bool, "BA", 2), make_input("v3", torch.float32, "B", 3)]
    values += [make_input("v4", torch.float32, "ABC", 4), make_input("v5", torch.float32, "AB", 5)]
    values += NUMBERS
    text, made = next(choices(expression, values, "y"))
    taken = [v for v in values if re.search(rf"\b{v.name}\b", text)]
    source = f"def program({', '.join(v.name for v in taken)}):\n    return {text},"
    check(Program(source, taken, [made], LARGEST, torch.float32), dynamic)


F = torch.nn.functional
# Not in it: the gradients of silu and smooth_l1_loss, which torchair does not lower, and of binary_cross_entropy_with_logits, for which
# torch_npu has no fake implementation.
TRAINED = {
    "layer_norm": lambda x, w, t, i: F.layer_norm(x, (6,), w[0], w[1]),
    "group_norm": lambda x, w, t, i: F.group_norm(x[..., None], 2, w[0], w[1]),
    "mse_loss": lambda x, w, t, i: F.mse_loss(x * w[0], t),
    "cross_entropy": lambda x, w, t, i: F.cross_entropy(x * w[0], i),
    "nll_loss of log_softmax": lambda x, w, t, i: F.nll_loss(F.log_softmax(x * w[0], -1), i, reduction="sum"),
    "softmax": lambda x, w, t, i: torch.softmax(x * w[0], -1) * t,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", TRAINED)
def test_norms_and_losses_train(name, dtype):
    """Values and gradients against the CPU in float64; the tolerance is a few roundings of the dtype."""
    generator = torch.Generator().manual_seed(0)
    x, w, t = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((4, 6), (2, 6), (4, 6)))
    i = torch.randint(6, (4,), generator=generator)

    def trained(run, x, w, t, i):
        x, w = x.requires_grad_(), w.requires_grad_()
        result = run(x, w, t, i)
        result.sum().backward()
        return [result, *(leaf.grad for leaf in (x, w) if leaf.grad is not None)]

    torch._dynamo.reset()
    compiled = torch.compile(TRAINED[name], backend=torchair.get_npu_backend(), dynamic=False, fullgraph=True)
    got = trained(compiled, x.npu(), w.npu(), t.npu(), i.npu())
    exact = trained(TRAINED[name], x.double(), w.double(), t.double(), i)
    for one, other in zip(got, exact, strict=True):
        tolerance = 8 * torch.finfo(dtype).eps * max(1.0, other.abs().max().item())
        torch.testing.assert_close(one.detach().cpu().double(), other.detach(), rtol=0, atol=tolerance)
