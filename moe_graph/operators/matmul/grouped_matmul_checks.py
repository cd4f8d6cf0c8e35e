"""What a call of `npu_grouped_matmul` asks for: its arguments, checked once for the fake implementation and the fallback."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.checks import Checks

check = Checks("npu_grouped_matmul")

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
HALVES = (torch.float16, torch.bfloat16)
PACKED_SCALES = (torch.int64, torch.uint64)
"""Of npu_trans_quant_param, for int8 results."""
MAX_TENSORS = 128
MAX_GROUPS = 1024
CUMSUM, COUNT, KEY_VALUE = 0, 1, 2
FAST_GELU_SCALE = 1.702

# act_type -> activation, on float32. 3 (GELU by the error function) is documented as not supported.
ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {
    0: lambda y: y,
    1: torch.relu,
    2: lambda y: torch.nn.functional.gelu(y, approximate="tanh"),
    4: lambda y: y * torch.sigmoid(FAST_GELU_SCALE * y),
    5: torch.nn.functional.silu,
}


@dataclass(frozen=True)
class Options:
    """The keyword arguments, with the schema's defaults. An empty list is an absent one."""

    bias: Sequence[Tensor] | None = None
    scale: Sequence[Tensor] | None = None
    offset: Sequence[Tensor] | None = None
    antiquant_scale: Sequence[Tensor] | None = None
    antiquant_offset: Sequence[Tensor] | None = None
    per_token_scale: Sequence[Tensor] | None = None
    group_list: Tensor | Sequence[int] | None = None
    activation_input: Sequence[Tensor] | None = None
    activation_quant_scale: Sequence[Tensor] | None = None
    activation_quant_offset: Sequence[Tensor] | None = None
    split_item: int | None = 0
    group_type: int | None = None
    group_list_type: int | None = 0
    act_type: int | None = 0
    tuning_config: Sequence[int] | None = None
    output_dtype: int | None = None
    x_dtype: int | None = None
    weight_dtype: int | None = None
    scale_dtype: int | None = None
    per_token_scale_dtype: int | None = None


class Axis(enum.Enum):
    """What is grouped in y[M, N] = x[M, K] @ weight[K, N]: nothing (a product for each pair of tensors), the rows M, or K."""

    NONE = enum.auto()
    ROWS = enum.auto()
    COLUMNS = enum.auto()


class NoTensorsError(NotImplementedError, ValueError):
    """Refused as any argument, and what torch's dispatcher raises of a call without a tensor where this package is not imported."""


@dataclass(frozen=True)
class Form:
    """A valid call. `stacked`: the one weight is [G, K, N]. `joined`: the output is one tensor."""

    axis: Axis
    stacked: bool
    joined: bool
    dtype: torch.dtype
    quantized: bool

    def groups(self, weight: Sequence[Tensor]) -> int | torch.SymInt:
        """How many products there are."""
        return weight[0].shape[0] if self.stacked else len(weight)


def check_arguments(x: Sequence[Tensor], weight: Sequence[Tensor], options: Options) -> Form:
    """The form of the call. Raises ValueError on what the operator's document excludes or the fallback does not serve."""
    if not x and not weight:
        raise NoTensorsError(check.message("x and weight", "lists with a tensor in them", "0 tensors"))
    for name, tensors in (("x", x), ("weight", weight)):
        if not 1 <= len(tensors) <= MAX_TENSORS:
            check.refuse(name, f"a list of 1 to {MAX_TENSORS} tensors", f"{len(tensors)} tensors")
        for tensor in tensors:
            check.device(name, tensor, "x", x[0])
            if tensor.dtype != tensors[0].dtype:
                check.refuse(name, "of one dtype", f"{tensors[0].dtype} and {tensor.dtype}")
    for name in ("offset", "activation_input", "activation_quant_scale", "activation_quant_offset"):
        check.absent(name, getattr(options, name) or None)
    check.own_dtype("x_dtype", options.x_dtype, x[0])
    check.own_dtype("weight_dtype", options.weight_dtype, weight[0])
    check.own_dtype("scale_dtype", options.scale_dtype, options.scale[0] if options.scale else None)
    tokens = options.per_token_scale
    check.own_dtype("per_token_scale_dtype", options.per_token_scale_dtype, tokens[0] if tokens else None)
    check.value("split_item", options.split_item, range(4))
    axis, stacked, joined = (_form_with_integers if _has_integers(options) else _form)(x, weight, options)
    quantized = _check_dtypes(x[0], weight[0])
    form = Form(axis, stacked, joined, _output_dtype(x[0], quantized, options), quantized)
    _check_shapes(x, weight, form)
    _check_group_list(weight, form, options)
    _check_lists(x, weight, form, options)
    return form


def _has_integers(options: Options) -> bool:
    """Is it the overload `.List`, whose group_list are integers?"""
    return options.group_list is not None and not isinstance(options.group_list, Tensor)


def _form(x: Sequence[Tensor], weight: Sequence[Tensor], options: Options) -> tuple[Axis, bool, bool]:
    check.value("group_type", options.group_type, (-1, 0, 2))
    joined = options.split_item in (2, 3)
    stacked = len(weight) == 1 and weight[0].dim() == 3
    if options.group_type == -1:
        if joined:
            check.refuse("split_item", "0 or 1 with group_type -1", options.split_item)
        if options.group_list is not None:
            check.refuse("group_list", "None with group_type -1", options.group_list)
        return Axis.NONE, False, False
    if options.group_type == 0:
        if not joined:
            check.refuse("split_item", "2 or 3 with group_type 0", options.split_item)
        if len(x) == 1 and options.group_list is None:
            check.refuse("group_list", "given with group_type 0 and one x", None)
        return Axis.ROWS, stacked, True
    if len(x) != 1:
        check.refuse("x", "one tensor with group_type 2", f"{len(x)} tensors")
    if joined and len(weight) != 1:
        check.refuse("weight", "one tensor with group_type 2 and split_item 2 or 3", f"{len(weight)} tensors")
    if joined != (options.group_list is not None):
        check.refuse("group_list", "given with group_type 2 if split_item is 2 or 3, and only then", options.group_list)
    return Axis.COLUMNS, False, joined


def _form_with_integers(x: Sequence[Tensor], weight: Sequence[Tensor], options: Options) -> tuple[Axis, bool, bool]:
    check.value("group_type", options.group_type, (None, -1, 0))  # torch_npu does not look at it here
    if options.group_list_type not in (None, CUMSUM):
        check.refuse("group_list_type", f"{CUMSUM} with a group_list of integers", options.group_list_type)
    check.absent("per_token_scale", options.per_token_scale or None, "with a group_list of integers")
    joined = options.split_item in (2, 3)
    return (Axis.NONE if len(x) > 1 and not joined else Axis.ROWS), False, joined


def _check_dtypes(x: Tensor, weight: Tensor) -> bool:
    """Is the call quantized? x and weight of one floating point dtype, int8 both, or int8 weights of a half-precision x."""
    if x.dtype == torch.int8:
        check.dtype("weight", weight, (torch.int8,))
        return True
    check.dtype("x", x, (*FLOATS, torch.int8))
    if weight.dtype == torch.int8 and x.dtype in HALVES:
        return True
    check.dtype("weight", weight, (x.dtype, torch.int8) if x.dtype in HALVES else (x.dtype,))
    return False


def _output_dtype(x: Tensor, quantized: bool, options: Options) -> torch.dtype:
    number = options.output_dtype
    dtype = None if number is None else dtypes.from_number(number)
    if x.dtype != torch.int8:
        if number is not None and dtype != x.dtype:
            check.refuse("output_dtype", f"None or x's, {x.dtype}", dtypes.name(number))
        return x.dtype
    packed = bool(options.scale) and options.scale[0].dtype in PACKED_SCALES  # type: ignore[index]
    allowed = (torch.int8,) if packed else HALVES if options.scale else (torch.int32,)
    dtype = torch.int8 if number is None else dtype
    if dtype not in allowed:
        text = " or ".join(map(str, allowed))
        with_scale = "with scale of int64" if packed else "with scale" if options.scale else "without scale"
        check.refuse(
            "output_dtype",
            f"{text} for int8 x {with_scale}",
            "None (int8)" if number is None else dtypes.name(number),
        )
    return dtype  # type: ignore[return-value]


def _check_shapes(x: Sequence[Tensor], weight: Sequence[Tensor], form: Form) -> None:
    several = len(x) > 1 or form.axis is Axis.NONE
    if several and len(x) != len(weight):
        check.refuse("x", f"as many tensors as weight, {len(weight)}", f"{len(x)} tensors")
    ranks = range(2, 7) if form.axis is Axis.NONE else (2,)
    for tensor in x:
        check.rank("x", tensor, ranks, "[..., K] of 2 to 6 dimensions" if form.axis is Axis.NONE else "[M, K]")
        if tensor.dim() != x[0].dim():
            check.refuse("x", "tensors of one rank", f"ranks {x[0].dim()} and {tensor.dim()}")
    for tensor in weight:
        check.rank("weight", tensor, (3,) if form.stacked else (2,), "[G, K, N]" if form.stacked else "[K, N]")
        if form.joined:
            check.size(tensor.shape[-1] == weight[0].shape[-1], "weight", "of one N with split_item 2 or 3", tensor)
    if form.axis is Axis.COLUMNS:
        total = sum(tensor.shape[0] for tensor in weight)
        if form.joined:
            check.size(x[0].shape[1] == total, "x", f"of K = {total}, weight's first size", x[0])
        else:
            check.size(x[0].shape[1] >= total, "x", f"of K >= {total}, the sum of weight's first sizes", x[0])
        return
    for index, tensor in enumerate(weight):
        inner = x[index if several else 0].shape[-1]
        check.size(tensor.shape[-2] == inner, "weight", f"of K = {inner}, x's last size", tensor)


def _check_group_list(weight: Sequence[Tensor], form: Form, options: Options) -> None:
    listed = options.group_list
    if options.group_list_type is not None:
        check.value("group_list_type", options.group_list_type, (CUMSUM, COUNT, KEY_VALUE))
    if listed is None:
        return
    if not isinstance(listed, Tensor):
        if len(listed) != len(weight):
            check.refuse("group_list", f"of weight's length, {len(weight)}", f"length {len(listed)}")
        if any(later < earlier for earlier, later in zip([0, *listed], listed)):
            check.refuse("group_list", "non-negative and non-decreasing", list(listed))
        return
    check.dtype("group_list", listed, (torch.int64,))
    check.device("group_list", listed, "weight", weight[0])
    shape = "[G, 2] with group_list_type 2" if options.group_list_type == KEY_VALUE else "[G]"
    check.rank("group_list", listed, (2,) if options.group_list_type == KEY_VALUE else (1,), shape)
    if options.group_list_type == KEY_VALUE:
        check.size(listed.shape[1] == 2, "group_list", f"of shape {shape}", listed)
    check.size(listed.shape[0] <= MAX_GROUPS, "group_list", f"of at most {MAX_GROUPS} groups", listed)
    if form.axis is Axis.ROWS:
        groups = form.groups(weight)
        check.size(listed.shape[0] == groups, "group_list", f"of G = {groups}, the number of weights", listed)


def _check_lists(x: Sequence[Tensor], weight: Sequence[Tensor], form: Form, options: Options) -> None:
    """bias, scale, antiquant_scale, antiquant_offset, per_token_scale and act_type."""
    is_int8 = x[0].dtype == torch.int8
    if form.axis is Axis.COLUMNS:
        for name in ("bias", "scale", "antiquant_scale", "antiquant_offset", "per_token_scale"):
            check.absent(name, getattr(options, name) or None, "with group_type 2")
        if form.quantized:
            check.refuse("x", f"of dtype {' or '.join(map(str, FLOATS))} with group_type 2", x[0].dtype)
    if not is_int8:
        check.absent("scale", options.scale or None, "x is not int8")
    if is_int8 or not form.quantized:
        for name in ("antiquant_scale", "antiquant_offset"):
            check.absent(name, getattr(options, name) or None, "it is for int8 weights of a floating point x")
    elif not options.antiquant_scale:
        check.refuse("antiquant_scale", f"given for int8 weights of x of dtype {x[0].dtype}", None)
    bias_dtypes = {torch.float16: (torch.float16, torch.float32), torch.bfloat16: HALVES[1:] + (torch.float32,)}
    quantized_bias = (torch.int32, *((form.dtype, torch.float32) if options.scale else ()))
    _check_list(
        "bias", options.bias, weight, form, quantized_bias if is_int8 else bias_dtypes.get(x[0].dtype, FLOATS[2:])
    )
    _check_list("scale", options.scale, weight, form, (torch.bfloat16, torch.float32, *PACKED_SCALES))
    for name in ("antiquant_scale", "antiquant_offset"):
        _check_list(name, getattr(options, name), weight, form, (x[0].dtype,), by_parts=True)
    if form.dtype == torch.int8:
        check.absent("per_token_scale", options.per_token_scale or None, "with int8 results")
    if options.per_token_scale:
        if not options.scale:
            check.refuse("scale", "given with per_token_scale", None)
        if len(x) != 1 or len(options.per_token_scale) != 1 or form.axis is not Axis.ROWS:
            check.refuse(
                "per_token_scale",
                "one tensor, for one x with group_type 0",
                f"{len(options.per_token_scale)} for {len(x)}",
            )
        (tokens,) = options.per_token_scale
        check.dtype("per_token_scale", tokens, (torch.float32,))
        check.rank("per_token_scale", tokens, (1,), "[M]")
        check.size(tokens.shape[0] == x[0].shape[0], "per_token_scale", f"of shape [M], M = {x[0].shape[0]}", tokens)
    if options.act_type is not None:
        check.value("act_type", options.act_type, tuple(ACTIVATIONS))
        if options.act_type and (not options.scale or form.dtype == torch.int8):
            check.refuse("act_type", "0 (activations are for int8 x with scale)", options.act_type)


def _check_list(
    name: str,
    tensors: Sequence[Tensor] | None,
    weight: Sequence[Tensor],
    form: Form,
    allowed: Sequence[torch.dtype],
    by_parts: bool = False,
) -> None:
    """A tensor [N] for each weight, or one [G, N] for a weight [G, K, N]. by_parts: also [parts, N], parts that K is cut in."""
    if not tensors:
        return
    if len(tensors) != len(weight):
        check.refuse(name, f"as many tensors as weight, {len(weight)}", f"{len(tensors)} tensors")
    for tensor, of in zip(tensors, weight):
        check.dtype(name, tensor, allowed)
        check.device(name, tensor, "weight", of)
        size = of.shape[-1]
        rank = 2 if form.stacked else 1
        if by_parts and tensor.dim() == rank + 1:
            check.size(of.shape[-2] % tensor.shape[-2] == 0, name, f"of a divisor of K = {of.shape[-2]} parts", tensor)
        else:
            check.rank(name, tensor, (rank,), "[G, N]" if form.stacked else "[N]")
        check.size(tensor.shape[-1] == size, name, f"of N = {size}, weight's last size", tensor)
        if form.stacked:
            check.size(tensor.shape[0] == of.shape[0], name, f"of G = {of.shape[0]}, weight's first size", tensor)
