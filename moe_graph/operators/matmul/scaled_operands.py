"""The operands of Ascend 950's products: elements of float8, hifloat8, float4, and scales for blocks of them.

    elements    a torch dtype of float8; or uint8 with torch_npu's number: hifloat8 (290), float4_e2m1 (296), two to a byte along the
                dimension that lies together in memory
    scales      float8_e8m0 (its dtype, or bytes with the number 293): x1's [..., M, ceil(K / 64), 2], x2's [..., ceil(K / 64), N, 2], of
                blocks of 32 along K; or float32 for blocks of 128 along K, and of 1 or 128 rows and 128 columns

Source: the document of aclnnQuantMatmulV5 (ops-nn, matmul/quant_batch_matmul_v4), modes MX, G-B and B-B.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.ge import Planned, type_of_input
from moe_graph.operators.quantization import elements, hifloat8, mx

_E8M0 = getattr(torch, "float8_e8m0fnu", None)
E8M0_NUMBER = 293
GROUP = 128
FLOAT8_DTYPES = tuple(form.dtype for form in mx.FLOAT8 if form.dtype is not None)
_NAMES = {form.dtype: form.ge for form in mx.FLOAT8}
FLOAT4 = mx.E2M1.ge
_NUMBERS = {290: hifloat8.GE_NAME, 291: mx.E5M2.ge, 292: mx.E4M3.ge, 296: FLOAT4, 23: mx.E5M2.ge, 24: mx.E4M3.ge}


def name_of(argument: str, x: Tensor, number: int | None) -> str:
    """The name in GE of an operand's type of Ascend 950, "" for another one. Raises NotImplementedError for another number."""
    if number is None or dtypes.from_number(number) == x.dtype:
        return _NAMES.get(x.dtype, "")
    if number not in _NUMBERS:
        known = ", ".join(dtypes.name(n) for n in (290, 291, 292, 296))
        raise NotImplementedError(f"{argument} must be None or one of {known}, got {dtypes.name(number)}")
    return _NUMBERS[number]


def ge_name(node: Planned, position: int, x: Tensor) -> str:
    """The same of an operand in a graph, the node's input at this position."""
    described = type_of_input(node, position)
    return described if "FLOAT8" in described or "FLOAT4" in described else _NAMES.get(x.dtype, "")


def carried(x: Tensor, name: str) -> Tensor:
    """The operand with one element in each place: float4 unpacked along the dimension that lies together in memory."""
    if name != FLOAT4:
        return x
    if x.dim() > 1 and x.stride(-1) != 1 and x.stride(-2) == 1:
        return carried(x.transpose(-1, -2), name).transpose(-1, -2)
    return mx.elements_of(x.view(torch.uint8), mx.E2M1)


def values(x: Tensor, name: str) -> Tensor:
    """Carried elements as float64, for a product that is exact; integers, whose name is "", too."""
    return elements.values_of(x.view(torch.uint8) if name == hifloat8.GE_NAME else x, name).double()


def is_e8m0(scale: Tensor | None, number: int | None) -> bool:
    """Are these scales of float8_e8m0?"""
    return scale is not None and (number == E8M0_NUMBER or scale.dtype == _E8M0)


def spread(scale: Tensor, shape: torch.Size, along_k: int) -> Tensor:
    """Scales of blocks as float64, one for each element of [..., rows, columns]. along_k: -1 of x1, -2 of x2.

    Raises ValueError if they do not fit."""
    rows, columns = shape[-2:]
    if scale.dtype in (torch.float32, torch.bfloat16):
        sizes = [1 if places == size else GROUP for places, size in zip(scale.shape[-2:], (rows, columns))]
        sizes[along_k] = GROUP
        factors = scale.double()
    else:
        factors = mx.power(mx.of_pairs(scale.contiguous(), along_k))
        sizes = [1, 1]
        sizes[along_k] = mx.BLOCK
    for axis, size, wanted in ((-2, sizes[0], rows), (-1, sizes[1], columns)):
        if factors.shape[axis] < -(-wanted // size):
            raise ValueError(
                f"scales of {tuple(scale.shape)} do not fit elements of {tuple(shape)} in blocks of {sizes[0]} x {sizes[1]}"
            )
        factors = factors.repeat_interleave(size, axis).narrow(axis, 0, wanted)
    return factors


def block_product(
    x1: Tensor, name1: str, scale1: Tensor, x2: Tensor, name2: str, scale2: Tensor, bias: Tensor | None = None
) -> Tensor:
    """(x1 * scale1) @ (x2 * scale2) + bias of carried elements, float32. Block by block it is the same number."""
    left = values(x1, name1)
    right = values(x2, name2)
    y = (left * spread(scale1, left.shape, -1)) @ (right * spread(scale2, right.shape, -2))
    return (y if bias is None else y + bias.double()).float()
