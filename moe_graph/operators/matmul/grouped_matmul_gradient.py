"""Derivatives and batches of `npu_grouped_matmul`: the gradient and the tangent in x, weight and bias, for calls that are not quantized.

Where groups share a tensor it is the operator again, with the same group_list, so it needs no sizes on the host, runs on a device's
kernel, becomes GroupedMatmul nodes in graph mode, and is differentiable itself:

    rows grouped (group_type 0)      dx = gmm(dy, weight transposed, rows)     dweight = gmm(x transposed, dy, columns)
    columns grouped (group_type 2)   dx = gmm(weight, dy transposed, rows) transposed     dweight = gmm(x transposed, dy, rows)

A batch (vmap) is one call where x or the weights are the same for all samples: a batch of x is more rows in each group, a batch of
weights more columns N. Where both differ it is a call for each sample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from moe_graph.foundation import compat, transforms
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
    """The kernel under Autograd. Without a derivative to take it only passes the call on.

    A call without a gradient, as a quantized one, has results all the same; to ask for their gradient is an error.
    """
    operator = _operator(keywords.get("group_list"))
    if not transforms.is_differentiated(x, weight, *keywords.values()):
        return transforms.below_autograd(operator, x, weight, **keywords)
    options, call = Options(**keywords), functools.partial(transforms.below_autograd, operator)
    everything = (*_all_tensors(x, weight, options),)
    try:
        form = check_arguments(x, weight, options)
        if form.quantized:
            check.refuse("x and weight", "of one floating point dtype where a gradient is required", x[0].dtype)
    except (ValueError, NotImplementedError) as error:
        refused = error
    else:
        tensors, modes = (*x, *weight, *(options.bias or ())), transforms.with_modes(call)
        return list(transforms.record(_GroupedMatmul, len(x), len(weight), form, options, modes, *tensors))
    return transforms.without_gradient(call(x, weight, **keywords), everything, why=refused)


def _all_tensors(x: Sequence[Tensor], weight: Sequence[Tensor], options: Options) -> list[Tensor]:
    lists = (options.bias, options.scale, options.antiquant_scale, options.antiquant_offset, options.per_token_scale)
    return [*x, *weight, *(tensor for tensors in lists for tensor in tensors or ())]


def _operator(group_list: Tensor | Sequence[int] | None) -> torch._ops.OpOverload:
    packet = torch.ops.npu.npu_grouped_matmul
    return packet.default if group_list is None or isinstance(group_list, Tensor) else packet.List


def _keywords(options: Options) -> dict[str, Any]:
    """The keyword arguments, those that are not the schema's defaults."""
    return {field.name: value for field in fields(options) if (value := getattr(options, field.name)) != field.default}


class _GroupedMatmul(compat.SingleLevelFunction):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, x_count: int, weight_count: int, form: Form, options: Options, call: Callable, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        x, weight, bias = _split(tensors, x_count, weight_count)
        ctx.counts, ctx.form, ctx.options = (x_count, weight_count), form, replace(options, bias=None, group_list=None)
        ctx.biases = [(of_group.shape, of_group.dtype) for of_group in bias]
        listed = options.group_list
        ctx.integers = None if isinstance(listed, Tensor) else listed
        ctx.save_for_backward(*((listed,) if isinstance(listed, Tensor) else ()), *x, *weight)
        ctx.save_for_forward(*((listed,) if isinstance(listed, Tensor) else ()), *tensors)
        return tuple(call(x, weight, **_keywords(replace(options, bias=bias or None))))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        x_count, weight_count = ctx.counts
        listed, saved = _listed(ctx, x_count + weight_count)
        x, weight, _ = _split(saved, x_count, weight_count)
        options = replace(ctx.options, group_list=listed)
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

    @staticmethod
    def jvp(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        """The product rule, each term one call: dx @ weight, and x @ dweight + dbias."""
        x_count, weight_count = ctx.counts
        listed, saved = _listed(ctx, x_count + weight_count + len(ctx.biases))
        options = replace(ctx.options, group_list=listed)
        x, weight, bias = _split(saved, x_count, weight_count)
        dx, dweight, dbias = _split(given[5:], x_count, weight_count)
        terms, call = [], _operator(options.group_list)
        with transforms.seen_by_vmap():
            if any(tangent is not None for tangent in dx):
                terms.append(call(_filled(dx, x), weight, **_keywords(options)))
            if any(tangent is not None for tangent in (*dweight, *dbias)):
                with_bias = replace(options, bias=_filled(dbias, bias) or None)
                terms.append(call(x, _filled(dweight, weight), **_keywords(with_bias)))
        return tuple(sum(rest, first) for first, *rest in zip(*terms))


def _split(tensors: Sequence[Any], x_count: int, weight_count: int) -> tuple[list, list, list]:
    """x, weight, bias."""
    end = x_count + weight_count
    return list(tensors[:x_count]), list(tensors[x_count:end]), list(tensors[end:])


def _listed(ctx: Any, count: int) -> tuple[Tensor | Sequence[int] | None, list[Tensor]]:
    """group_list, and the `count` tensors that were saved beside it."""
    saved = list(ctx.saved_tensors)
    return (saved.pop(0) if len(saved) > count else ctx.integers), saved


def _filled(tangents: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(x) if tangent is None else tangent for tangent, x in zip(tangents, like)]


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
    grad_weight = [_rows(part).t() @ _rows(grad) for part, grad in pairs]
    if len(parts) != len(x) or rest_rows:
        grad_parts = [torch.cat([*grad_parts, whole.new_zeros((rest_rows, whole.shape[1]))])]
    return grad_parts, grad_weight


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _gradient_of_bias(
    grads: Sequence[Tensor], x: Sequence[Tensor], form: Form, options: Options, biases: Sequence[tuple]
) -> list[Tensor]:
    """The sum of each group's rows."""
    groups = biases[0][0][0] if form.stacked else len(biases)
    if not form.joined:
        totals = [_rows(grad).float().sum(0) for grad in grads]
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


def grouped_matmul_batches(
    batch: transforms.Batch, x: Sequence[Tensor], weight: Sequence[Tensor], **keywords: Any
) -> tuple[Any, Any]:
    """The rule for vmap."""
    options = Options(**keywords)
    of_columns = ("bias", "scale", "antiquant_scale", "antiquant_offset")  # one value for each column N
    widens = batch.has(weight, *(getattr(options, name) for name in of_columns))
    lengthens = batch.has(x, options.per_token_scale)
    operator = _operator(options.group_list)
    if batch.has(options.group_list) or (widens and lengthens):
        return transforms.each_sample(lambda: operator)(batch, x, weight, **keywords)
    if widens:
        given = {name: getattr(options, name) for name in of_columns if getattr(options, name)}
        keywords = {
            **_keywords(options),
            **{name: [_wide(batch, t) for t in tensors] for name, tensors in given.items()},
        }
        outputs = operator(x, [_wide(batch, matrix) for matrix in weight], **keywords)
        outputs = [y.unflatten(-1, (batch.size, -1)).movedim(-2, 0) for y in outputs]
    else:
        listed, scales = options.group_list, options.per_token_scale
        if listed is not None and options.group_type != 2:
            listed = _longer(listed, batch.size, options.group_list_type)
        options = replace(options, group_list=listed, per_token_scale=scales and [_long(batch, t) for t in scales])
        outputs = operator([_long(batch, matrix) for matrix in x], weight, **_keywords(options))
        rows = 1 if options.group_type == 2 and options.split_item in (2, 3) else 0
        outputs = [y.unflatten(rows, (-1, batch.size)).movedim(rows + 1, 0) for y in outputs]
    return outputs, [True] * len(outputs)


def _wide(batch: transforms.Batch, x: Tensor) -> Tensor:
    """[..., N] for each sample -> [..., B * N]"""
    return batch.whole(x).movedim(0, -2).flatten(-2)


def _long(batch: transforms.Batch, x: Tensor) -> Tensor:
    """[M, ...] for each sample -> [M * B, ...]"""
    return batch.whole(x).movedim(0, 1).flatten(0, 1)


def _longer(listed: Tensor | Sequence[int], size: int, kind: int | None) -> Tensor | list[int]:
    """group_list of groups `size` times as long."""
    if not isinstance(listed, Tensor):
        return [end * size for end in listed]
    return listed * listed.new_tensor([1, size]) if kind == KEY_VALUE else listed * size
