"""`npu_gelu_quant(input, *, input_scale, input_offset, approximate, quant_mode, dst_type, round_mode)`: gelu, then quantization.

    input [..., H] float16, bfloat16, float32 -> y [..., H] int8, float8_e5m2, float8_e4m3fn, hifloat8 (uint8), out_scale [...] float32
    approximate  "none" (by erf), "tanh"
    quant_mode   "static": y = round(gelu * input_scale + input_offset), out_scale has no elements
                 "dynamic": v = gelu * input_scale, out_scale = max |v| / the type's largest, y = round(v / out_scale)
    input_scale, input_offset [H] or [1]

Source: the document of aclnnGeluQuant (ops-nn, activation/gelu_quant), which has it on Ascend 950. Computed in float32; halves are rounded
to even, those of hifloat8 away from zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.quantization import destination, int4

_check = Checks("npu_gelu_quant")


def gelu_quant(
    x: Tensor,
    *,
    input_scale: Tensor | None = None,
    input_offset: Tensor | None = None,
    approximate: str = "none",
    quant_mode: str = "dynamic",
    dst_type: int | None = None,
    round_mode: str = "rint",
) -> tuple[Tensor, Tensor | None]:
    """y and out_scale; None in its place with static quantization. Raises ValueError for modes that the document excludes."""
    maximum = destination.largest("npu_gelu_quant: dst_type", dst_type, float8=True)
    if maximum == int4.INT4_MAX:
        raise NotImplementedError("npu_gelu_quant: dst_type must be int8 or a type of float8, got int4")
    _check.value("approximate", approximate, ("none", "tanh"))
    _check.value("quant_mode", quant_mode, ("static", "dynamic"))
    _check.value("round_mode", round_mode, ("rint",))
    values = torch.nn.functional.gelu(x.float(), approximate=approximate)
    if input_scale is not None:
        values = values * input_scale.float()
    if quant_mode == "dynamic":
        y, scale = destination.dynamic(values, maximum)
        return y, scale.squeeze(-1)
    if input_scale is None:
        _check.refuse("input_scale", "given with quant_mode 'static'", None)
    if input_offset is not None:
        values = values + input_offset.float()
    return destination.rounded(values, maximum), None


def _ge_gelu_quant(
    x: Tensor,
    input_scale: Tensor | None = None,
    input_offset: Tensor | None = None,
    *,
    approximate: str = "none",
    quant_mode: str = "dynamic",
    dst_type: GeType = 2,  # type: ignore[assignment]
    round_mode: str = "rint",
) -> tuple[Tensor, Tensor]:
    """GE GeluQuant."""
    y, scale = gelu_quant(
        x,
        input_scale=input_scale,
        input_offset=input_offset,
        approximate=approximate,
        quant_mode=quant_mode,
        dst_type=destination.number_of_ge("GeluQuant: dst_type", dst_type),
        round_mode=round_mode,
    )
    return y, x.new_empty(0, dtype=torch.float32) if scale is None else scale


OPERATOR = of_torch_npu("npu_gelu_quant", gelu_quant, ge=[GeKernel("GeluQuant", _ge_gelu_quant)])
