"""`npu_grouped_matmul` of integers by weights of int4: the rows of one x are grouped (group_type 0, split_item 2 or 3), no activation.

    weight  one [G, K, N / 8] int32, eight int4 in each; as it is, not transposed
    scale   [G, N] or [G, parts, N], equal parts of K: int64 or uint64 with a float32 in the low 32 bits
    per_token_scale  [M] or [M, 1] float32     output_dtype  float16 or bfloat16

    x int32 [M, K / 8] of int4:  y = x @ (weight * scale) * per_token_scale; per_token_scale may be left out; group_list_type 0 or 1
    x int8 [M, K]:               y = ((x - 8) @ (weight * scale) + sum of x * offset + bias) * per_token_scale
                                 bias [G, N] float32 is 8 * the sum of the scaled columns; offset, of float16 results alone, [G, 1, N]
                                 float32: the weights' zero points times scale. group_list has sizes, whatever group_list_type says

Sources: the kernel's document (ops-transformer, gmm/grouped_matmul), op-plugin's test of int8 by int4; the offset's part of the formula is
what the document says that it stands for, as npu_grouped_matmul_finalize_routing has it. Sums are exact, the rest float32, rounded once.
Of the sizes that the document allows its kernel, parts of 256 and some K and N, nothing is asked here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.matmul.grouped_matmul_checks import COUNT, CUMSUM, HALVES, PACKED_SCALES, Options, check
from moe_graph.operators.matmul.grouped_rows import scaled, weights
from moe_graph.operators.matmul.products import exact_product
from moe_graph.operators.quantization import int4
from moe_graph.operators.quantization.trans_quant_param import unpacked

Segments = Callable[[Options, int, int], Iterator[tuple[int, int, int]]]
"""(options, rows, groups) -> (start, stop, group) of each product."""


def is_int4(x: Sequence[Tensor], weight: Sequence[Tensor]) -> bool:
    """Is it a call of integers by weights of int4, packed?"""
    return bool(x and weight) and weight[0].dtype == torch.int32 and x[0].dtype in (torch.int8, torch.int32)


def result(x: Sequence[Tensor], weight: Sequence[Tensor], options: Options) -> Tensor:
    """An empty result of a packed call. Raises ValueError for what the module's document excludes."""
    _check_form(x, weight, options)
    return x[0].new_empty((x[0].shape[0], weight[0].shape[-1] * int4.PER_WORD), dtype=_output_dtype(options))


def grouped(x: Sequence[Tensor], weight: Sequence[Tensor], options: Options, segments: Segments) -> list[Tensor]:
    """The results of a packed call."""
    _check_form(x, weight, options)
    rows, of_int4 = (int4.unpacked(x[0]), True) if x[0].dtype == torch.int32 else (x[0], False)
    return compute(rows, of_int4, weight[0], options, segments)


def compute(x: Tensor, of_int4: bool, weight: Tensor, options: Options, segments: Segments) -> list[Tensor]:
    """The same of x [M, K] int8, whose elements are those of int4 or not, and weights packed or as the engine carries int4."""
    dtype = _output_dtype(options)
    matrices, _ = weights(check, "weight", weight, x.shape[1])
    groups, inner, columns = matrices.shape
    scale, bias, offset = _parameters(of_int4, groups, inner, columns, options, dtype)
    tokens = options.per_token_scale[0] if options.per_token_scale else None
    if tokens is None and not of_int4:
        check.refuse("per_token_scale", "given with x of int8 and weights of int4", None)
    y = torch.zeros((len(x), columns), dtype=torch.float32)
    kind = options.group_list_type if of_int4 else COUNT
    check.value("group_list_type", kind, (CUMSUM, COUNT))
    for start, stop, group in segments(dataclasses.replace(options, group_list_type=kind), len(x), groups):
        if stop == start:
            continue
        rows = x[start:stop]
        if of_int4:
            y[start:stop] = _by_parts(rows, matrices[group], scale[group])
            continue
        y[start:stop] = scaled(rows, matrices[group], scale[group], bias[group], True)
        if offset is not None:
            y[start:stop] += rows.float().sum(1, keepdim=True) * offset[group].float()
    if tokens is not None:
        check.dtype("per_token_scale", tokens, (torch.float32,))
        check.size(tokens.shape in ((len(x),), (len(x), 1)), "per_token_scale", f"of shape [M], M = {len(x)}", tokens)
        y *= tokens.reshape(-1, 1)
    return [y.to(dtype)]


def _by_parts(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """float32: x @ (weight * scale), scale [N] or [parts, N]."""
    factors = unpacked(scale)[0].reshape(-1, 1, weight.shape[-1])
    parts = weight.unflatten(0, (len(factors), -1))
    rows = x.unflatten(1, (len(factors), -1)).transpose(0, 1)
    return (exact_product(rows, parts).float() * factors).sum(0)


def _check_form(x: Sequence[Tensor], weight: Sequence[Tensor], options: Options) -> None:
    if len(x) != 1 or len(weight) != 1 or options.group_type != 0 or options.split_item not in (2, 3):
        check.refuse(
            "group_type", "0, with one x, one weight and split_item 2 or 3, of weights of int4", options.group_type
        )
    check.rank("x", x[0], (2,), "[M, K]")
    check.rank("weight", weight[0], (3, 5), "[G, K, N / 8]")
    if not isinstance(options.group_list, Tensor):
        check.refuse("group_list", "a tensor, of weights of int4", options.group_list)
    check.dtype("group_list", options.group_list, (torch.int64,))
    check.rank("group_list", options.group_list, (1,), "[G]")
    check.value("act_type", options.act_type or 0, (0,))
    for name in ("antiquant_scale", "antiquant_offset", "activation_input"):
        check.absent(name, getattr(options, name) or None, "of integers by weights of int4")
    if not options.scale:
        check.refuse("scale", "given with weights of int4", None)
    if x[0].dtype == torch.int32:
        for name in ("bias", "offset"):
            check.absent(name, getattr(options, name) or None, "with x of int4")
    elif not options.bias:
        check.refuse("bias", "given with x of int8 and weights of int4", None)
    _output_dtype(options)


def _output_dtype(options: Options) -> torch.dtype:
    dtype = None if options.output_dtype is None else dtypes.from_number(options.output_dtype)
    if dtype not in HALVES:
        got = None if options.output_dtype is None else dtypes.name(options.output_dtype)
        check.refuse("output_dtype", "torch.float16 or torch.bfloat16 with weights of int4", got)
    assert dtype is not None
    return dtype


def _parameters(
    of_int4: bool, groups: int, inner: int, columns: int, options: Options, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """scale, bias (of no elements with int4 x), offset, their shapes checked."""
    assert options.scale
    scale = options.scale[0]
    check.dtype("scale", scale, PACKED_SCALES)
    fits = scale.dim() in (2, 3) and (scale.shape[0], scale.shape[-1]) == (groups, columns)
    check.size(
        fits and (scale.dim() == 2 or inner % scale.shape[1] == 0),
        "scale",
        f"of shape [G, N] or [G, parts, N], G = {groups}, N = {columns}, the parts a divisor of K = {inner}",
        scale,
    )
    if of_int4:
        return scale, torch.empty(0), None
    assert options.bias
    bias, offset = options.bias[0], options.offset[0] if options.offset else None
    check.dtype("bias", bias, (torch.float32,))
    check.size(bias.shape == (groups, columns), "bias", f"of shape [G, N] = {[groups, columns]}", bias)
    if offset is not None:
        check.dtype("offset", offset, (torch.float32,))
        check.size(offset.shape == (groups, 1, columns), "offset", "of shape [G, 1, N]", offset)
        check.size(scale.shape == (groups, 1, columns), "scale", "of shape [G, 1, N] with offset", scale)
        if dtype != torch.float16:
            check.refuse("output_dtype", "torch.float16 with offset", dtype)
    return scale, bias, offset
