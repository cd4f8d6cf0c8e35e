"""Which calls the entries of `moe_graph.converters.known` are about: each function says whether a call is one of those.

`Arguments` are the call's, by the schema's names (FX nodes for tensors), with the FX node itself as `node`, and as `lowered` what torchair
has made of the nodes before it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

Arguments = dict[str, Any]


def value_of(argument: Any) -> Any:
    """The fake tensor or number of an argument that is an FX node; anything else as it is."""
    return argument.meta.get("val") if isinstance(argument, torch.fx.Node) else argument


def all_dimensions(arguments: Arguments) -> bool:
    x = value_of(arguments["self"])
    return not arguments["dim"] and isinstance(x, torch.Tensor) and x.dim() > 0 and not is_950()


def is_950() -> bool:
    """Does torchair lower for Ascend 950?"""
    from torchair._utils.check_platform import is_arch35

    return bool(is_arch35())


def other_scale(arguments: Arguments) -> bool:
    """Is a scale given that is not the quotient of the sizes? PyTorch samples by the scale, GE's node has the sizes only."""
    x, sizes = value_of(arguments["self"]), arguments["output_size"]
    dims = {"scales": -1, "scales_d": -3, "scales_h": -2, "scales_w": -1}
    scales = {dims[name]: scale for name, scale in arguments.items() if name in dims and scale is not None}
    return any(not _divides(x.shape[dim], value_of(sizes[dim]), scale) for dim, scale in scales.items())


def _divides(size: Any, out: Any, scale: float) -> bool:
    """Is `scale` the quotient of the sizes? Of sizes that are symbolic: is it so whatever they are?"""
    if isinstance(size, int) and isinstance(out, int):
        return size * scale == out
    return float(scale).is_integer()


def rank_is(rank: int, name: str = "self") -> Callable[[Arguments], bool]:
    return lambda arguments: value_of(arguments[name]).dim() == rank


def leaves_gaps(arguments: Arguments) -> bool:
    """Do size and stride need more memory than there are elements?"""
    sizes, strides = arguments["size"], arguments["stride"]
    if not all(isinstance(number, int) for number in (*sizes, *strides)):
        return False
    needed = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides))
    return 0 not in sizes and needed > math.prod(sizes)


def turns_other_pairs(arguments: Arguments) -> bool:
    """Is rotary_mode another than what is lowered, on a product without a kernel that takes it?"""
    return arguments.get("rotary_mode", "half") != "half" and arguments.get("rotate") is None and not is_950()


def rounded_number(arguments: Arguments) -> bool:
    """Is the other operand a number that the tensor's half type does not hold?"""
    x, number = value_of(arguments["self"]), arguments["other"]
    if not isinstance(x, torch.Tensor) or x.dtype not in (torch.float16, torch.bfloat16):
        return False
    return isinstance(number, float) and torch.tensor(number, dtype=x.dtype).item() != number


def fractions_of_whole_numbers(arguments: Arguments) -> bool:
    """Are whole numbers scaled by a fraction?"""
    x = value_of(arguments["self"])
    scales = (arguments["alpha"], arguments["beta"])
    return not (x.is_floating_point() or x.is_complex()) and any(
        isinstance(scale, float) and not scale.is_integer() for scale in scales
    )


def reads_what_is_overwritten(arguments: Arguments) -> bool:
    """Does this write into an input read another input that the graph has written before?"""
    source, target = arguments["src"], arguments["self"]
    if not isinstance(source, torch.fx.Node) or source.op != "placeholder" or source is target:
        return False
    return any(
        user.target is torch.ops.aten.copy_.default and user.args[0] is source and user < arguments["node"]
        for user in source.users
    )


def steps_in_a_half_type(arguments: Arguments) -> bool:
    """Is it of a half type? Not looked for on Ascend 950, which has a kernel for it."""
    return value_of(arguments["input"]).dtype in (torch.float16, torch.bfloat16) and not is_950()


def hands_out_places(arguments: Arguments) -> bool:
    """Are the places of a max pooling read by anything but its gradient? Not looked for on Ascend 950, whose kernel returns them.

    A graph that is trained through (its inputs are named primals) hands them to its gradient as an output.
    """
    node = arguments["node"]
    trains = any(other.op == "placeholder" and other.name.startswith("primals") for other in node.graph.nodes)
    readers = [reader for user in node.users if user.args[1] == 1 for reader in user.users]
    harmless = (torch.ops.aten.max_pool2d_with_indices_backward.default, *(("output",) if trains else ()))
    return any(reader.target not in harmless for reader in readers) and not is_950()


def loses_a_transposition(arguments: Arguments) -> bool:
    """Would torchair's view of the tensor be a copy, where PyTorch's is none?

    torchair keeps a chain of views as strides of the tensor that it began with, which it takes to be contiguous. What is computed from
    a transposed tensor is transposed in PyTorch, so that a view that is possible there copies here, and the strides begin anew.
    """
    source = getattr(arguments["lowered"].get(arguments["self"]), "npu", None)
    chain, sizes = getattr(source, "view_faketensor", None), value_of(arguments["node"]).shape
    if chain is None:
        return False
    asked = arguments["shape"] if "shape" in arguments else arguments["size"]
    named = {*chain.mapsym, *(str(value_of(size)) for size in asked)}
    if any(not isinstance(size, int) and str(size) not in named for size in sizes):
        return False  # torchair ends the chain itself
    try:
        chain.meta.view(sizes)
    except (RuntimeError, ValueError):
        return True
    return False


def hands_out_a_view(arguments: Arguments) -> bool:
    """Is a view of the input that is written an output, of sizes that are not constant, with other strides or another start?

    PyTorch then takes the view anew from the input, by the strides of what the graph returned, and torchair returns it contiguous.
    """
    written, _ = _base(arguments["src"])
    if arguments["self"].op != "placeholder" or written is None or written.op == "placeholder":
        return False
    outputs = [node for node in arguments["node"].graph.nodes if node.op == "output"][0].all_input_nodes
    return any(
        base is written and symbolic and not _begins_and_is_contiguous(value_of(output))
        for output in outputs
        for base, symbolic in [_base(output)]
    )


def _base(node: Any) -> tuple[torch.fx.Node | None, bool]:
    """What a node is a view of, and whether a number of the views is not constant."""
    symbolic = False
    while isinstance(node, torch.fx.Node) and getattr(node.target, "is_view", False):
        symbolic = symbolic or len(node.all_input_nodes) > 1
        node = node.args[0]
    return (node, symbolic) if isinstance(node, torch.fx.Node) else (None, False)


def _begins_and_is_contiguous(x: torch.Tensor) -> bool:
    """Is it known that `x` begins where its memory does, and is contiguous?"""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    wanted: Any = 1
    for size, stride in zip(reversed(x.shape), reversed(x.stride())):
        if not (statically_known_true(stride == wanted) or statically_known_true(size == 1)):
            return False
        wanted = wanted * size
    return statically_known_true(x.storage_offset() == 0)


def outputs_that_share_memory(arguments: Arguments) -> torch.fx.Node | None:
    """The first result that shares memory with one before it in PyTorch, and not here."""
    pairs = _pairs_of_outputs(arguments)
    return next((_operator_of(later) for later, in_torch, here in pairs if in_torch and not here), None)


def outputs_that_share_memory_here(arguments: Arguments) -> torch.fx.Node | None:
    """The first result that shares memory with one before it here, and not in PyTorch."""
    pairs = _pairs_of_outputs(arguments)
    return next((_operator_of(later) for later, in_torch, here in pairs if here and not in_torch), None)


def _operator_of(node: torch.fx.Node) -> torch.fx.Node:
    """The call that a result comes from, which may be one of several results."""
    source = node.args[0] if node.target is operator.getitem else node
    return source if isinstance(source, torch.fx.Node) else node


def _pairs_of_outputs(arguments: Arguments) -> list[tuple[torch.fx.Node, bool, bool]]:
    """Each two results that are no views of inputs: the later one, do they share memory in PyTorch, and does torchair make them one?"""
    inputs = {_memory(node) for node in arguments["node"].graph.nodes if node.op == "placeholder"}
    memory = {node: _memory(node) for node in _results(arguments["node"])}
    results = [node for node, lies_in in memory.items() if lies_in is not None and lies_in not in inputs]
    lowered = {node: getattr(arguments["lowered"].get(node), "npu", None) for node in results}
    return [
        (later, memory[first] == memory[later], _is_one(lowered[first], lowered[later]))
        for place, later in enumerate(results)
        for first in results[:place]
    ]


def _memory(node: torch.fx.Node) -> int | None:
    """Which memory a node's fake tensor lies in; None if it is no tensor of strides."""
    x = value_of(node)
    strided = isinstance(x, torch.Tensor) and x.layout == torch.strided
    return x.untyped_storage()._cdata if strided else None


def _is_one(first: Any, later: Any) -> bool:
    """Are they one tensor of the GE graph, and none a view that torchair has yet to make?"""
    if first is None or later is None or first.tensor != later.tensor:
        return False
    return all(getattr(each, "view_faketensor", None) is None for each in (first, later))


def _results(output: torch.fx.Node) -> list[torch.fx.Node]:
    """What the graph returns to the caller as it is, without what is kept for the gradient or what a view is made of again."""
    from torch._guards import TracingContext

    returned = list(output.args[0])  # type: ignore[arg-type]
    context = TracingContext.try_get()
    meta = None if context is None else context.fw_metadata
    if meta is None:
        return list(dict.fromkeys(output.all_input_nodes))
    if any(node.op == "placeholder" and node.name.startswith("tangents") for node in output.graph.nodes):
        return []  # the graph of the gradients
    names = ("mutated_inp_runtime_indices", "mutated_inp_indices")  # the latter up to torch 2.1
    start = len(next((getattr(meta, name) for name in names if hasattr(meta, name)), ()))
    kinds = [info.output_type.name for info in meta.output_info]
    as_they_are = ("non_alias", "unsafe_view_alias", "custom_function_view")
    kept = (node for node, kind in zip(returned[start:], kinds) if kind in as_they_are)
    return list(dict.fromkeys(node for node in kept if isinstance(node, torch.fx.Node)))


def always(arguments: Arguments) -> bool:
    return True
