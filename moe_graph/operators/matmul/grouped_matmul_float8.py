"""`npu_grouped_matmul` of float8, hifloat8 and float4, as Ascend 950 has it: the rows of one x are grouped (group_type 0, split_item 2, 3).

    x [M, K], weight one [G, K, N] or G of [K, N]: float8_e4m3fn, float8_e5m2; hifloat8, float4_e2m1 (bytes and x_dtype, weight_dtype)
    scale [G, N] or [G, 1] float32, bfloat16, or int64 of npu_trans_quant_param; per_token_scale [M] or none
        y = x @ weight * scale * per_token_scale + bias
    scale [G, ceil(K / 64), N, 2], per_token_scale [M, ceil(K / 64), 2] float8_e8m0 (MX), or float32 of blocks of 128 (`scaled_operands`)
        y = (x * per_token_scale) @ (weight * scale) + bias
    x float8, weight float4_e2m1 (two to a byte along K): the same with antiquant_scale for scale
    output_dtype float16, bfloat16, float32

Sources: op-plugin's test of the operator and torch_npu's fake implementation; the blocks as the document of aclnnQuantMatmulV5 and the
page of npu_grouped_matmul_swiglu_quant_v2 have them. Products are nearly exact, scaling is float32, rounded once. Rows beyond
the groups are 0 here and not written on a device. Not served: other group_types, float4_e1m2, act_type, float8 x with weights of float4
packed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.matmul import scaled_operands
from moe_graph.operators.matmul.grouped_matmul_checks import Options, check
from moe_graph.operators.quantization import mx
from moe_graph.operators.quantization.trans_quant_param import unpacked

RESULTS = (torch.float16, torch.bfloat16, torch.float32)


def is_float8(x: Sequence[Tensor], weight: Sequence[Tensor], options: Options) -> bool:
    """Is it a call of these types?"""
    return bool(x and weight) and any(names(x, weight, options))


def names(x: Sequence[Tensor], weight: Sequence[Tensor], options: Options) -> tuple[str, str]:
    """The types of x and weight, by their names in GE."""
    return (
        scaled_operands.name_of("npu_grouped_matmul: x_dtype", x[0], options.x_dtype),
        scaled_operands.name_of("npu_grouped_matmul: weight_dtype", weight[0], options.weight_dtype),
    )


def _scales(kinds: tuple[str, str]) -> tuple[str, str]:
    """The name of the argument that has the weights' scales, and of the one that must be left out."""
    mixed = kinds[1] == scaled_operands.FLOAT4 != kinds[0]
    return ("antiquant_scale", "scale") if mixed else ("scale", "antiquant_scale")


def result_dtype(x: Sequence[Tensor], kinds: tuple[str, str], options: Options) -> torch.dtype:
    """The results' dtype; kinds: the operands' types' names in GE. Raises for a form that is not served."""
    mx.only_on_950("npu_grouped_matmul of float8, hifloat8 and float4")
    if len(x) != 1 or options.group_type != 0 or options.split_item not in (2, 3):
        check.refuse("group_type", "0, with one x and split_item 2 or 3, of float8", options.group_type)
    if not isinstance(options.group_list, Tensor):
        check.refuse("group_list", "a tensor, of x of float8", options.group_list)
    used, other = _scales(kinds)
    if not getattr(options, used):
        check.refuse(used, f"given with x of {kinds[0]} and weights of {kinds[1]}", None)
    for name in ("offset", other, "antiquant_offset"):
        check.absent(name, getattr(options, name) or None, "of x of float8")
    check.value("act_type", options.act_type or 0, (0,))
    dtype = None if options.output_dtype is None else dtypes.from_number(options.output_dtype)
    if dtype not in RESULTS:
        check.refuse("output_dtype", f"one of {RESULTS} of x of float8", options.output_dtype)
    return dtype


def compute(
    x: Tensor,
    weight: Sequence[Tensor],
    kinds: tuple[str, str],
    options: Options,
    dtype: torch.dtype,
    segments: Iterator[tuple[int, int, int]],
) -> list[Tensor]:
    """One result. Operands are carried, one element in each place; kinds: their types' names in GE; segments: (start, stop, group)."""

    def by_group(tensors: Sequence[Tensor] | None) -> Tensor | Sequence[Tensor] | None:
        return tensors[0] if tensors and len(weight) == 1 else tensors or None

    matrices, scales, biases = by_group(weight), by_group(getattr(options, _scales(kinds)[0])), by_group(options.bias)
    assert matrices is not None and scales is not None  # checked: they are given
    y = torch.zeros((len(x), weight[0].shape[-1]), dtype=dtype)
    tokens = options.per_token_scale[0] if options.per_token_scale else None
    for start, stop, group in segments:
        if stop == start:
            continue
        matrix, scale, rows = matrices[group], scales[group], slice(start, stop)
        bias = None if biases is None else biases[group]
        if tokens is not None and tokens.dim() >= 2:
            y[rows] = scaled_operands.block_product(x[rows], kinds[0], tokens[rows], matrix, kinds[1], scale, bias)
            continue
        sums = scaled_operands.values(x[rows], kinds[0]) @ scaled_operands.values(matrix, kinds[1])
        product = sums.float() * unpacked(scale)[0]
        product = product if tokens is None else product * tokens[rows].unsqueeze(1)
        y[rows] = product if bias is None else product + bias.float()
    return [y]
