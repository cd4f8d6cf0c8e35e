"""What torchair lowers to other numbers than PyTorch's: the one list, and what is told of it while torchair lowers.

Each entry was found by the walk over torch's operator samples (tests/opinfo_graph.py) or by torchair's declared cases, and holds for
torchair as it is in torch_npu 2.13. `evidence` is the node that torchair writes and what its kernel computes, by the document named: the
node itself, not the engine, has the other number. tests/simulated/test_graph_known.py evaluates each dumped node, and checks that the
remedy helps.
"""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from moe_graph.converters import decisions
from moe_graph.converters import known_calls as calls
from moe_graph.converters.known_calls import Arguments
from moe_graph.foundation import settings


class TorchairWarning(UserWarning):
    """torchair lowers a call to something else than PyTorch's operator. `entry` is the entry of the list."""

    def __init__(self, message: str, entry: Known) -> None:
        super().__init__(message)
        self.entry = entry


class TorchairError(RuntimeError):
    """The same as an error, where MOE_GRAPH_TORCHAIR_NUMBERS=error or `moe_graph.torchair_numbers("error")` asks for it."""


@dataclass(frozen=True)
class Known:
    """One way in which torchair's lowering is another function than the operator.

    operators  overloads, "aten.std.correction", or "output" for what a graph returns
    applies    does a call with these arguments (FX nodes for tensors) have it? The FX node that is to blame, if it is another
    what       what comes out instead                remedy     how to write it so that it is right
    document   of the kernel that is lowered to      evidence   the node, and what it computes by the document
    captured   the modes that capture have it, too: a pass of torchair over the FX graph is the cause
    """

    operators: tuple[str, ...]
    applies: Callable[[Arguments], bool | torch.fx.Node | None]
    what: str
    remedy: str
    document: str
    evidence: str
    captured: bool = False


KNOWN = (
    Known(
        ("aten.std.correction",),
        calls.all_dimensions,
        "the deviation over all dimensions is taken from each element's own value as the mean",
        "name the dimensions, x.std(tuple(range(x.dim()))), or flatten: x.flatten().std(0)",
        "torchair's definition of ReduceMean (attribute noop_with_empty_axes, default true); ops-math, math/reduce_mean",
        "ReduceMean(x, axes=[]) with noop_with_empty_axes left at true is x itself, which ReduceStdWithMean takes for the mean",
    ),
    Known(
        ("aten._safe_softmax.default",),
        calls.always,
        "a row that is -inf throughout (masked whole) gives NaN where PyTorch gives 0",
        "torch.softmax(x, dim).masked_fill(x.max(dim, keepdim=True).values == -torch.inf, 0)",
        "ops-nn, activation/softmax_v2",
        "SoftmaxV2(x): e^x over the sum of e^x, 0 / 0 in such a row",
    ),
    Known(
        ("aten._fft_c2c.default",),
        lambda arguments: not arguments["forward"],
        "the inverse transform is computed as the forward one",
        "of real x and n elements transformed: torch.view_as_real(torch.fft.fft2(x)) / n * torch.tensor([1.0, -1.0])",
        "torchair's definitions of FFT and FFT2D",
        "FFT or FFT2D, which have no direction: the converter does not read `forward`",
    ),
    Known(
        ("aten.upsample_nearest1d.default", "aten.upsample_nearest2d.default", "aten.upsample_nearest3d.default"),
        calls.other_scale,
        "rows and columns are picked by the quotient of the sizes, where PyTorch picks them by scale_factor",
        "interpolate(..., size=...) or recompute_scale_factor=True, which is the same in eager",
        "torchair's definition of ResizeNearestNeighborV2",
        "ResizeNearestNeighborV2(x, size): it has no scales",
    ),
    Known(
        ("aten.multinomial.default",),
        lambda arguments: bool(arguments["replacement"]),
        "numbers are drawn without replacement",
        "draw n samples in a call each, or take the draw out of the graph",
        "torchair's definition of MultinomialWithReplacement (attribute replacement, default false)",
        "MultinomialWithReplacement(x, numsamples) with replacement left at false",
    ),
    Known(
        ("aten._native_batch_norm_legit_functional.default", "aten._native_batch_norm_legit.default"),
        lambda arguments: bool(arguments["training"]),
        "in training the batch's and the running statistics are exchanged: the running ones become the batch's, the gradient is wrong",
        "keep the norm out of the graph when it trains, torch.compiler.disable(norm); in eval() it is right",
        "ops-nn, norm/batch_norm_v3",
        "BatchNormV3 returns y, running_mean, running_var, save_mean, save_rstd; the converter hands them on as y, save_*, running_*",
    ),
    Known(
        ("aten.native_batch_norm_backward.default",),
        lambda arguments: bool(arguments["train"]),
        "the saved 1 / sqrt(variance + eps) is taken for the variance: the gradient is wrong",
        "keep the norm out of the graph when it trains, torch.compiler.disable(norm)",
        "ops-nn, norm/batch_norm_grad_v3; torchair's definitions of BNTrainingUpdateGrad and BNTrainingReduceGrad",
        "save_invstd is fed to an input of the kernel that is the batch's variance",
    ),
    Known(
        ("aten.native_group_norm_backward.default",),
        calls.steps_in_a_half_type,
        "the gradient of a half type is computed step by step in it, and from a rounded variance: some units of the type off",
        "F.group_norm(x.float(), ...).to(x.dtype), with weight and bias in float32",
        "torchair's definitions of GroupNorm and BNTrainingUpdateGrad; ops-math, math/mul",
        "Sub(Reciprocal(Mul(rstd, rstd)), eps) and Mul(dy, gamma), in the half type, for BNTrainingUpdateGrad and BNTrainingReduceGrad",
    ),
    Known(
        ("aten.gelu.default", "aten.gelu_backward.default"),
        lambda arguments: arguments["approximate"] == "none",
        "it is computed by the tangent's form, up to 5e-4 from the error function's",
        "0.5 * x * (1 + torch.erf(x / 2**0.5)); or approximate='tanh', if the model may be that",
        "ops-nn, activation/gelu and activation/gelu_grad",
        "Gelu, whose formula is the tangent's: the converter does not read `approximate`",
    ),
    Known(
        ("aten.div.Tensor",),
        calls.rounded_number,
        "the number is rounded to the tensor's half type first, where PyTorch divides in float32 and rounds once",
        "(x.float() / number).to(x.dtype), or divide by a number that the type holds",
        "ops-math, math/real_div",
        "RealDiv(x, c), c being a constant of the tensor's type",
    ),
    Known(
        ("aten.max_pool2d_with_indices.default",),
        calls.hands_out_places,
        "the places are the values of the maximum, cast to int64",
        "take the places out of the graph: torch.compiler.disable the pooling; without return_indices it is right",
        "torchair's definition of MaxPoolWithArgmaxV1, whose second output is a mask",
        "Cast(Identity(y)) of MaxPoolWithArgmaxV1's first output: the converter has nothing that it could make the places of",
    ),
    Known(
        ("aten.baddbmm.default",),
        calls.fractions_of_whole_numbers,
        "whole numbers are multiplied by the fraction and then cut, where PyTorch cuts the fraction first",
        "alpha and beta that are whole numbers",
        "ops-math, math/mul",
        "Cast(Mul(BatchMatMul(x, y), alpha))",
    ),
    Known(
        ("aten.native_dropout_backward.default",),
        lambda arguments: calls.value_of(arguments["mask"]).dtype == torch.bool,
        "a mask of truth values is read as bits",
        "grad * mask * scale",
        "torchair's definition of DropOutDoMask: its mask is bits, in uint8",
        "DropOutDoMask(grad, mask): only the mask of a dropout of the same graph is made of bits",
    ),
    Known(
        ("aten.replication_pad1d.default",),
        calls.rank_is(2),
        "the graph is refused when it runs: four pairs of paddings for three dimensions",
        "pad x[None] and take [0]",
        "torchair's definition of PadV3",
        "Unsqueeze and PadV3 with 8 paddings, made for a tensor [N, C, W]",
    ),
    Known(
        ("aten.index_select.default", "aten.index_add.default"),
        calls.rank_is(0),
        "the graph is refused when it runs: the tensor has no dimension to index",
        "x.reshape(1) before it, and reshape(()) after it",
        "torchair's definitions of GatherV2 and Pack",
        "GatherV2 of a scalar, Pack of nothing",
    ),
    Known(
        ("aten.new_empty_strided.default",),
        calls.leaves_gaps,
        "the graph is refused when it runs: as much memory as there are elements does not hold them with these strides",
        "new_empty(...) of the larger size, and a slice of it",
        "torchair's definitions of Empty and AsStrided",
        "AsStrided(Empty(size), size, stride)",
    ),
    Known(
        ("aten.as_strided_scatter.default",),
        lambda arguments: any(isinstance(size, torch.fx.Node) for size in arguments["size"]),
        "the graph is refused when it runs: of sizes that are not constant one stride is computed, not one for a dimension",
        "compile it with dynamic=False, or torch._dynamo.mark_static on the tensor",
        "torchair's definition of ViewCopy",
        "ViewCopy(dst, size, stride, 0, src, size, src_stride), src_stride being [1] for every rank",
    ),
    Known(
        ("aten.copy_.default",),
        calls.reads_what_is_overwritten,
        "an input is read after the graph has written into it: torchair's pass has removed the copy that was made of it before",
        "config.experimental_config.remove_noop_ops = False; of npugraph_ex options={'remove_noop_ops': False}",
        "ops-math, conversion/assign",
        "NetOutput(b, a), to be written into a and b, or Assign(a, b) and Assign(b, a): in the order in which they stand b keeps its value",
        captured=True,
    ),
    Known(
        ("aten.copy_.default",),
        calls.hands_out_a_view,
        "with dynamic shapes a view of the written input that the graph returns is another part of it, or in another order",
        "return no view of an input that the graph writes to: take it outside of the graph; or dynamic=False",
        "torch's runtime for outputs that alias inputs (gen_alias_from_base); torchair's outputs",
        "the graph returns the view contiguous; PyTorch makes it anew of the input, with the sizes and strides of what was returned",
    ),
    Known(
        ("aten.reshape.default", "aten.view.default"),
        calls.loses_a_transposition,
        "a transposition is lost: the elements come in another order",
        "config.experimental_config.enable_view_optimize = False, or .contiguous() before the tensor is transposed back",
        "torchair's views (continguous_utils); ops-math, conversion/transpose",
        "nothing, or a Reshape alone, where the elements would have to be moved by a Transpose",
    ),
    Known(
        ("npu.npu_fusion_attention.default", "npu.npu_fusion_attention_grad.default"),
        lambda arguments: arguments["pse"] is not None or arguments.get("sink") is not None,
        "attention, or its gradient, without pse and without sink",
        "call it outside of the compiled graph, or capture it (mode npugraph_ex)",
        "torchair's converter of npu_fusion_attention; ops-transformer, attention/flash_attention_score",
        "FlashAttentionScore(query, key, value) with real_shift left out, and no input for sink",
    ),
    Known(
        ("npu.npu_rotary_mul.default", "npu.npu_rotary_mul_backward.default"),
        calls.turns_other_pairs,
        "the halves of x are turned, as with rotary_mode 'half'",
        "x * r1 + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) * r2; or, without a gradient, rotate=, which is lowered",
        "torchair's converters of npu_rotary_mul and its gradient; ops-transformer, posembedding/rotary_position_embedding",
        "RotaryMul(x, r1, r2), RotaryMulGrad(x, r1, r2, dy): neither has a mode",
    ),
    Known(
        ("npu.npu_rotary_mul.default",),
        lambda arguments: arguments.get("rotate") is not None and calls.is_950(),
        "the partners of rotary_mode are taken, not input @ rotate",
        "x * r1 + (x @ rotate) * r2",
        "torchair's converter of npu_rotary_mul",
        "RotaryPositionEmbedding(x, r1, r2) of Ascend 950 with rotate left out",
    ),
    Known(
        ("npu.npu_moe_distribute_combine.default",),
        lambda arguments: arguments.get("shared_expert_x") is not None,
        "the result without shared_expert_x",
        "add shared_expert_x to the result; or npu_moe_distribute_combine_v2, which is lowered with it",
        "torchair's converter of npu_moe_distribute_combine",
        "MoeDistributeCombine, which has no input for it",
    ),
    Known(
        ("output",),
        calls.outputs_that_share_memory,
        "results that share memory in PyTorch, views of one tensor, have memory of their own: a write into one is not seen in another",
        "write into none of them; or return the tensor, and take the views of it outside of the graph",
        "torchair's outputs (GeConcreteGraph.parse_output); torch leaves views of a tensor that needs no gradient to the compiler",
        "NetOutput(y, z), each contiguous and in memory of its own; only a view of an input is made a view again",
    ),
    Known(
        ("output",),
        calls.outputs_that_share_memory_here,
        "results that do not share memory in PyTorch are one tensor: a write into one is seen in the other",
        "write into none of them, or clone() one of them outside of the graph",
        "torchair's outputs (GeConcreteGraph.parse_output: outputs of one GE tensor are one output)",
        "NetOutput(y), returned twice: the copy into a new tensor is lowered to what is copied",
    ),
)
_BY_OPERATOR = {operator: [k for k in KNOWN if operator in k.operators] for k in KNOWN for operator in k.operators}


def table() -> str:
    """The list as a Markdown table, as docs/graph_mode.md has it."""
    rows = ["| operators | what comes out instead | remedy | the node, and its document |", "|---|---|---|---|"]
    rows += [
        f"| {', '.join(entry.operators)} | {entry.what} | {entry.remedy} | {entry.evidence} ({entry.document}) |"
        for entry in KNOWN
    ]
    return "\n".join(rows)


_lock = threading.Lock()
_told: set[tuple[str, str, str]] = set()


def forget() -> None:
    """What has been told is told again."""
    with _lock:
        _told.clear()


def tell(node: torch.fx.Node, lowered: Mapping[torch.fx.Node, Any], captured: bool = False) -> None:
    """Tell, if `node`, which torchair is about to lower to GE, is in the list: once for an entry, operator and line of the program.

    `lowered` is what torchair has made of the nodes before; `captured`: it captures the operators as they are. How it tells is
    `settings.torchair_numbers`: a TorchairWarning, a TorchairError, or nothing.
    """
    how = settings.torchair_numbers_are()
    entries = _BY_OPERATOR.get(str(node.target)) if how != "silent" else None
    for entry in entries or ():
        found = entry.applies({**_arguments(node), "lowered": lowered}) if entry.captured or not captured else None
        if not found:
            continue
        blamed = found if isinstance(found, torch.fx.Node) else node
        line = decisions.line_of(blamed.stack_trace)
        message = (
            f"torchair lowers {blamed.target} to other numbers than PyTorch's{f' ({line})' if line else ''}: {entry.what}. "
            f"Remedy: {entry.remedy}. (MOE_GRAPH_TORCHAIR_NUMBERS=error or silent)"
        )
        if how == "error":
            raise TorchairError(message)
        with _lock:
            told = (entry.what, str(blamed.target), line)
            seen = told in _told
            _told.add(told)
        if not seen:
            warnings.warn(TorchairWarning(message, entry), stacklevel=2)


def _arguments(node: torch.fx.Node) -> Arguments:
    """The call's arguments by the schema's names, with its defaults, and the node itself as `node`."""
    given: Arguments = {"node": node}
    schema = getattr(node.target, "_schema", None)  # an output has none
    for position, parameter in enumerate(schema.arguments if schema is not None else ()):
        default = parameter.default_value if parameter.has_default_value() else None
        given[parameter.name] = (
            node.args[position] if position < len(node.args) else node.kwargs.get(parameter.name, default)
        )
    return given


# ---- where torchair lowers ----


def install_if_loaded() -> None:
    """Look at each node that torchair or npugraph_ex lowers, as far as they are loaded. Idempotent."""
    for interpreter in _interpreters():
        if not hasattr(interpreter.run_node, "_original"):
            interpreter.run_node = _telling(interpreter.run_node)


def _telling(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run_node(self: Any, node: torch.fx.Node) -> Any:
        tell(node, self.env, captured=type(self._graph).__name__ != "GeConcreteGraph")
        with decisions.lowering(node):
            return original(self, node)

    run_node._original = original  # type: ignore[attr-defined]
    return run_node


def uninstall() -> None:
    """Undo `install_if_loaded`."""
    for interpreter in _interpreters():
        if hasattr(interpreter.run_node, "_original"):
            interpreter.run_node = interpreter.run_node._original


def _interpreters() -> list[Any]:
    """The interpreters of FX graphs, torchair's and npugraph_ex's, that are there already."""
    modules = (sys.modules.get(f"{name}.npu_fx_compiler") for name in ("torchair", "npugraph_ex"))
    found = (getattr(module, "_NpuGraphConverter", None) for module in modules)
    return [interpreter for interpreter in found if interpreter is not None]
