"""The gradient of `npu_grouped_matmul` in x, weight and bias, for calls that are not quantized.

Where groups share a tensor it is the operator again, with the same group_list, so it needs no sizes on the host, runs on a device's
kernel, becomes GroupedMatmul nodes in graph mode, and is differentiable itself:

    rows grouped (group_type 0)      dx = gmm(dy, weight transposed, rows)     dweight = gmm(x transposed, dy, columns)
    columns grouped (group_type 2)   dx = gmm(weight, dy transposed, rows) transposed     dweight = gmm(x transposed, dy, rows)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from moe_graph.operators.matmul.grouped_matmul_checks import (
    CUMSUM,
    KEY_VALUE,
    Axis,
    Form,
    Options,
    check,
    check_arguments,
)


def grouped_matmul_autograd(x: Sequence[Tensor], weight: Sequence[Tensor], **keywords: Any) -> list[Tensor]:
    """The kernel under Autograd. Without a gradient to record, and with torch_npu for a form that has none, it only passes the call on."""
    options = Options(**keywords)
    tensors = (*x, *weight, *(options.bias or ()))
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _all_tensors(x, weight, options))):
        return _below_autograd(x, weight, keywords)
    try:
        form = check_arguments(x, weight, options)
        if form.quantized:
            check.refuse("x and weight", "of one floating point dtype where a gradient is required", x[0].dtype)
    except ValueError:
        if "torch_npu" not in sys.modules:
            raise
        # A device may compute it, without a gradient, as it does without this package.
        return _below_autograd(x, weight, keywords)
    return list(_GroupedMatmul.apply(len(x), len(weight), form, options, keywords, *tensors))


def _all_tensors(x: Sequence[Tensor], weight: Sequence[Tensor], options: Options) -> list[Tensor]:
    lists = (options.bias, options.scale, options.antiquant_scale, options.antiquant_offset, options.per_token_scale)
    return [*x, *weight, *(tensor for tensors in lists for tensor in tensors or ())]


def _operator(options: Options) -> torch._ops.OpOverload:
    packet = torch.ops.npu.npu_grouped_matmul
    integers = options.group_list is not None and not isinstance(options.group_list, Tensor)
    return packet.List if integers else packet.default


def _below_autograd(x: Sequence[Tensor], weight: Sequence[Tensor], keywords: dict[str, Any]) -> list[Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        return _operator(Options(**keywords))(x, weight, **keywords)


class _GroupedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_count: int, weight_count: int, form: Form, options: Options, keywords: dict, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.counts, ctx.form, ctx.options = (x_count, weight_count), form, replace(options, bias=None, group_list=None)
        ctx.biases = [(bias.shape, bias.dtype) for bias in options.bias or ()]
        listed = options.group_list
        ctx.integers = None if isinstance(listed, Tensor) else listed
        ctx.save_for_backward(*((listed,) if isinstance(listed, Tensor) else ()), *tensors[: x_count + weight_count])
        return tuple(_below_autograd(tensors[:x_count], tensors[x_count : x_count + weight_count], keywords))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        x_count, weight_count = ctx.counts
        saved = list(ctx.saved_tensors)
        listed = saved.pop(0) if len(saved) > x_count + weight_count else ctx.integers
        x, weight, options = saved[:x_count], saved[x_count:], replace(ctx.options, group_list=listed)
        needed = ctx.needs_input_grad[5:]
        needs_x, needs_weight = any(needed[:x_count]), any(needed[x_count : x_count + weight_count])
        gradient = _gradient_of_columns if ctx.form.axis is Axis.COLUMNS else _gradient_of_rows
        if ctx.form.joined and isinstance(listed, Tensor) and len(x) == 1:
            grad_x, grad_weight = gradient(x[0], weight, grads[0], ctx.form, options, needs_x, needs_weight)
        else:
            grad_x, grad_weight = _gradient_of_parts(x, weight, grads, ctx.form, options)
        grad_bias = (
            _gradient_of_bias(grads, x, ctx.form, options, ctx.biases)
            if any(needed[x_count + weight_count :])
            else [None] * len(ctx.biases)
        )
        return None, None, None, None, None, *grad_x, *grad_weight, *grad_bias


def _call(x: Sequence[Tensor], weight: Sequence[Tensor], options: Options, group_type: int) -> Tensor:
    keywords = {"group_list": options.group_list, "group_list_type": options.group_list_type}
    return torch.ops.npu.npu_grouped_matmul.default(x, weight, split_item=3, group_type=group_type, **keywords)[0]


def _gradient_of_rows(
    x: Tensor, weight: Sequence[Tensor], grad: Tensor, form: Form, options: Options, needs_x: bool, needs_weight: bool
) -> tuple[list, list]:
    grad_x = _call([grad], [matrix.transpose(-1, -2) for matrix in weight], options, 0) if needs_x else None
    if not needs_weight:
        return [grad_x], [None] * len(weight)
    stacked = _call([x.t()], [grad], options, 2)
    return [grad_x], [stacked] if form.stacked else list(stacked.unbind())


def _gradient_of_columns(
    x: Tensor, weight: Sequence[Tensor], grad: Tensor, form: Form, options: Options, needs_x: bool, needs_weight: bool
) -> tuple[list, list]:
    grad_x = _call(weight, [grad.transpose(1, 2)], options, 0).t() if needs_x else None
    return [grad_x], [_call([x.t()], [grad], options, 0) if needs_weight else None]


def _gradient_of_parts(
    x: Sequence[Tensor], weight: Sequence[Tensor], grads: Sequence[Tensor], form: Form, options: Options
) -> tuple[list, list]:
    """Where the tensors or integers on the host say the groups: a product for each."""
    whole = x[0]
    if form.axis is Axis.COLUMNS:
        sizes = [matrix.shape[0] for matrix in weight]
        parts = whole.split([*sizes, whole.shape[1] - sum(sizes)], dim=1)
        grad_parts = [grad @ matrix.t() for grad, matrix in zip(grads, weight)]
        rest = torch.zeros_like(parts[-1])
        return [torch.cat([*grad_parts, rest], dim=1)], [part.t() @ grad for part, grad in zip(parts, grads)]
    parts, rest_rows = list(x), 0
    if len(x) == 1 and options.group_list is not None:
        ends = [0, *options.group_list]
        sizes = [stop - start for start, stop in zip(ends, ends[1:])]
        rest_rows = whole.shape[0] - sum(sizes)
        parts = list(whole.split([*sizes, rest_rows])[:-1])
    if form.joined:
        grads = grads[0].split([part.shape[0] for part in parts] + [rest_rows])[:-1]
    grad_parts = [grad @ matrix.t() for grad, matrix in zip(grads, weight)]
    pairs = zip(parts, grads)
    grad_weight = [part.flatten(0, -2).t() @ grad.flatten(0, -2) for part, grad in pairs]
    if len(parts) != len(x) or rest_rows:
        grad_parts = [torch.cat([*grad_parts, whole.new_zeros((rest_rows, whole.shape[1]))])]
    return grad_parts, grad_weight


def _gradient_of_bias(
    grads: Sequence[Tensor], x: Sequence[Tensor], form: Form, options: Options, biases: Sequence[tuple]
) -> list[Tensor]:
    """The sum of each group's rows."""
    groups = biases[0][0][0] if form.stacked else len(biases)
    if not form.joined:
        totals = [grad.float().flatten(0, -2).sum(0) for grad in grads]
        return [total.to(dtype) for total, (_, dtype) in zip(totals, biases)]
    (grad,) = grads
    group = _group_of_rows(x, options, groups, grad)
    width = grad.shape[1]
    sums = torch.zeros((groups + 1, width), dtype=torch.float32, device=grad.device).index_add(0, group, grad.float())
    if form.stacked:
        return [sums[:groups].to(biases[0][1])]
    return [sums[index].to(dtype) for index, (_, dtype) in enumerate(biases)]


def _group_of_rows(x: Sequence[Tensor], options: Options, groups: int, grad: Tensor) -> Tensor:
    """The group of each row of a joined output; `groups` for rows of none."""
    listed = options.group_list
    if listed is None:
        sizes = torch.tensor([matrix.shape[0] for matrix in x], device=grad.device)
        ends = sizes.cumsum(0)
    elif not isinstance(listed, Tensor):
        ends = torch.tensor(listed, device=grad.device)
    elif options.group_list_type == KEY_VALUE:
        ends = listed[:, 1].cumsum(0)
    else:
        ends = listed if options.group_list_type in (None, CUMSUM) else listed.cumsum(0)
    rows = torch.arange(grad.shape[0], device=grad.device)
    position = torch.searchsorted(ends, rows, right=True)
    if isinstance(listed, Tensor) and options.group_list_type == KEY_VALUE:
        return torch.cat([listed[:, 0], listed.new_full((1,), groups)])[position]
    return position
