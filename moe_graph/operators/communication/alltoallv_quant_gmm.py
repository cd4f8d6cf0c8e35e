"""`npu_alltoallv_quant_gmm`: `npu_alltoallv_gmm` of float8, hifloat8 and float4 (Ascend 950); and what it shares with the way back.

    T-T (quant modes 1)  hifloat8 (bytes and the number of the type); x_scale [1], weight_scale [1] float32
                         y = x @ weight * (x_scale * weight_scale), the scales being those of the rank that multiplies
    MX  (quant modes 6)  float8_e4m3fn, float8_e5m2, or both float4_e2m1 (two to a byte); float8_e8m0 for blocks of 32 along H
                         gmm_x_scale [rows, ceil(H / 64), 2], gmm_weight_scale [E, ceil(H / 64), N, 2]
                         mm_x_scale [B, ceil(K / 64), 2], mm_weight_scale [ceil(K / 64), M, 2]
                         y = (x * x_scale) @ (weight * weight_scale); rows that travel take their scales along
    gmm_y_dtype, mm_y_dtype float16 or bfloat16; permute_out is like gmm_x

Source: the operator's page in the torch_npu documentation. Products are nearly exact, scaling is float32, rounded once. Not served: counts
as tensors, float4 in a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.checks import Checks
from moe_graph.operators.communication.alltoallv_gmm import both_counts, ep_group, to_experts, to_ranks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType, Planned
from moe_graph.operators.matmul import scaled_operands
from moe_graph.operators.quantization import hifloat8, mx

_PER_TENSOR, _MX = 1, 6
_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _Operand:
    """Elements as they are stored, the name of their type in GE, their scales."""

    elements: Tensor
    name: str
    scale: Tensor

    def part(self, index: int | slice | Tensor) -> _Operand:
        """Rows of x, or an expert's matrix, with their scales of blocks."""
        scale = self.scale if self.scale.dim() == 1 else self.scale[index]
        return replace(self, elements=self.elements[index], scale=scale)

    def times(self, weight: _Operand) -> Tensor:
        """float32 [rows, N]."""
        left, right = (scaled_operands.carried(operand.elements, operand.name) for operand in (self, weight))
        if self.scale.dim() > 1:
            return scaled_operands.block_product(left, self.name, self.scale, right, weight.name, weight.scale)
        sums = scaled_operands.values(left, self.name) @ scaled_operands.values(right, weight.name)
        return sums.float() * (self.scale * weight.scale)


def _checked(check: Checks, kind: str, x: _Operand, weight: _Operand, modes: Sequence[int | None]) -> None:
    """Raise ValueError unless x and weight are a pair of one of the two modes; kind: "gmm" or "mm"."""
    names = (x.name, weight.name)
    if list(modes) == [_PER_TENSOR, _PER_TENSOR]:
        if names != (hifloat8.GE_NAME, hifloat8.GE_NAME):
            check.refuse(f"{kind}_x and {kind}_weight", "hifloat8 with quant mode 1", names)
        for argument, scale in ((f"{kind}_x_scale", x.scale), (f"{kind}_weight_scale", weight.scale)):
            check.dtype(argument, scale, (torch.float32,))
            check.size(scale.shape == (1,), argument, "of shape [1] with quant mode 1", scale)
        return
    if list(modes) != [_MX, _MX]:
        check.refuse(f"{kind}_x_quant_mode and {kind}_weight_quant_mode", "both 1 or both 6", tuple(modes))
    allowed = {form.ge for form in mx.FLOAT8}
    if not {*names} <= allowed and set(names) != {scaled_operands.FLOAT4}:
        check.refuse(f"{kind}_x and {kind}_weight", "of float8 or both of float4_e2m1 with quant mode 6", names)
    for argument, operand in ((f"{kind}_x_scale", x), (f"{kind}_weight_scale", weight)):
        rank = operand.elements.dim() + 1
        check.rank(argument, operand.scale, (rank,), "[..., ceil(K / 64), 2], or [..., N, 2], with quant mode 6")


def _experts(x: _Operand, weight: _Operand, sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """The products of rows in expert order [rows, N]."""
    products, start = [], 0
    for expert, size in enumerate(sizes.tolist()):
        products.append(x.part(slice(start, start + size)).times(weight.part(expert)))
        start += size
    return torch.cat(products).to(dtype)


def _moved(x: _Operand, send: Tensor, receive: Tensor, group: dist.ProcessGroup) -> _Operand:
    """Rows in rank order, sent to their experts' ranks, in expert order; with their scales."""

    def moved(rows: Tensor) -> Tensor:
        return to_experts(rows.contiguous().view(torch.uint8), send, receive, group).view(rows.dtype)

    return replace(x, elements=moved(x.elements), scale=x.scale if x.scale.dim() == 1 else moved(x.scale))


@dataclass(frozen=True)
class Call:
    """What both operators are given, the operands in pairs; mm is None without shared experts."""

    check: Checks
    gmm: tuple[_Operand, _Operand]
    mm: tuple[_Operand, _Operand] | None
    modes: tuple[int | None, int | None]
    mm_modes: tuple[int | None, int | None]
    dtype: torch.dtype
    mm_dtype: torch.dtype | None
    hcom: str
    ranks: int
    counts: tuple[Sequence[int], Sequence[int]]
    count_tensors: tuple[Tensor | None, Tensor | None]

    def checked(self) -> tuple[dist.ProcessGroup, Tensor, Tensor]:
        """The group and the counts [ranks, E] sent and received. Raises ValueError for what the module's document excludes."""
        mx.only_on_950("npu_alltoallv_quant_gmm and npu_quant_gmm_alltoallv")
        _checked(self.check, "gmm", *self.gmm, self.modes)
        self.check.value("gmm_y_dtype", self.dtype, _HALVES)
        if self.mm is not None:
            _checked(self.check, "mm", *self.mm, self.mm_modes)
            self.check.value("mm_y_dtype", self.mm_dtype, _HALVES)
        group = ep_group(self.hcom, self.ranks, self.count_tensors)
        return group, *both_counts(*self.counts, self.ranks, len(self.gmm[1].elements))

    def shared(self) -> Tensor | None:
        """mm_y."""
        return None if self.mm is None else self.mm[0].times(self.mm[1]).to(self.mm_dtype)

    def there(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """gmm_y, mm_y and permute_out of npu_alltoallv_quant_gmm."""
        group, send, receive = self.checked()
        routed = _moved(self.gmm[0], send, receive, group)
        return _experts(routed, self.gmm[1], receive.sum(0), self.dtype), self.shared(), routed.elements

    def back(self) -> tuple[Tensor, Tensor | None]:
        """y and mm_y of npu_quant_gmm_alltoallv."""
        group, send, receive = self.checked()
        products = _experts(*self.gmm, send.sum(0), self.dtype)
        return to_ranks(products, send, receive, group), self.shared()


def eager_call(
    operator: str,
    gmm: tuple[Tensor, Tensor, Tensor, Tensor],
    mm: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    numbers: Sequence[int | None],
    scale_numbers: Sequence[int | None],
    y_dtypes: tuple[int, int | None],
    group_size: Sequence[int] | None,
    **given: object,
) -> Call:
    """gmm, mm: x, weight and their scales; numbers: of the types of gmm_x, gmm_weight, mm_x, mm_weight, and of their scales."""
    check = Checks(operator)
    for number in scale_numbers:
        check.value("the type of a scale", number, (None, 6, scaled_operands.E8M0_NUMBER))
    if group_size is not None and any(group_size) and list(group_size) != [1, 1, mx.BLOCK]:
        check.refuse("group_size", f"None, zeros or [1, 1, {mx.BLOCK}]", list(group_size))

    def named(argument: str, x: Tensor, number: int | None, scale: Tensor) -> _Operand:
        return _Operand(x, scaled_operands.name_of(f"{operator}: {argument}", x, number), scale)

    pair = (named("gmm_x_dtype", gmm[0], numbers[0], gmm[2]), named("gmm_weight_dtype", gmm[1], numbers[1], gmm[3]))
    shared = None
    if any(tensor is not None for tensor in mm):
        x, weight, x_scale, weight_scale = mm
        if x is None or weight is None or x_scale is None or weight_scale is None:
            check.refuse("mm_x, mm_weight and their scales", "given all or none", [tensor is not None for tensor in mm])
        assert x is not None and weight is not None and x_scale is not None and weight_scale is not None
        shared = named("mm_x_dtype", x, numbers[2], x_scale), named("mm_weight_dtype", weight, numbers[3], weight_scale)
    mm_dtype = None if y_dtypes[1] is None else dtypes.from_number(y_dtypes[1])
    dtype = dtypes.from_number(y_dtypes[0])
    if dtype is None:
        check.refuse("gmm_y_dtype", "float16 or bfloat16", dtypes.name(y_dtypes[0]))
    return Call(check, pair, shared, dtype=dtype, mm_dtype=mm_dtype, **given)  # type: ignore[arg-type]


def alltoallv_quant_gmm(
    gmm_x: Tensor,
    gmm_weight: Tensor,
    gmm_x_scale: Tensor,
    gmm_weight_scale: Tensor,
    hcom: str,
    ep_world_size: int,
    send_counts: Sequence[int],
    recv_counts: Sequence[int],
    gmm_y_dtype: int,
    *,
    send_counts_tensor: Tensor | None = None,
    recv_counts_tensor: Tensor | None = None,
    mm_x: Tensor | None = None,
    mm_weight: Tensor | None = None,
    mm_x_scale: Tensor | None = None,
    mm_weight_scale: Tensor | None = None,
    gmm_x_quant_mode: int | None = None,
    gmm_weight_quant_mode: int | None = None,
    mm_x_quant_mode: int | None = None,
    mm_weight_quant_mode: int | None = None,
    permute_out_flag: bool = False,
    group_size: Sequence[int] | None = None,
    gmm_x_dtype: int | None = None,
    gmm_weight_dtype: int | None = None,
    gmm_x_scale_dtype: int | None = None,
    gmm_weight_scale_dtype: int | None = None,
    mm_x_dtype: int | None = None,
    mm_weight_dtype: int | None = None,
    mm_x_scale_dtype: int | None = None,
    mm_weight_scale_dtype: int | None = None,
    mm_y_dtype: int | None = None,
    comm_mode: str | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """gmm_y, mm_y, permute_out; the last two None where they are not asked for."""
    call = eager_call(
        "npu_alltoallv_quant_gmm",
        (gmm_x, gmm_weight, gmm_x_scale, gmm_weight_scale),
        (mm_x, mm_weight, mm_x_scale, mm_weight_scale),
        (gmm_x_dtype, gmm_weight_dtype, mm_x_dtype, mm_weight_dtype),
        (gmm_x_scale_dtype, gmm_weight_scale_dtype, mm_x_scale_dtype, mm_weight_scale_dtype),
        (gmm_y_dtype, mm_y_dtype),
        group_size,
        modes=(gmm_x_quant_mode, gmm_weight_quant_mode),
        mm_modes=(mm_x_quant_mode, mm_weight_quant_mode),
        hcom=hcom,
        ranks=ep_world_size,
        counts=(send_counts, recv_counts),
        count_tensors=(send_counts_tensor, recv_counts_tensor),
    )
    y, mm_y, routed = call.there()
    return y, mm_y, routed if permute_out_flag else None


def ge_call(
    node: Planned,
    inputs: Sequence[Tensor | None],
    count_tensors: tuple[Tensor | None, Tensor | None],
    group: str,
    ranks: int,
    counts: tuple[list, list],
    modes: tuple[int, int],
    mm_modes: tuple[int, int],
    transposed: tuple[bool, bool],
    y_dtype: GeType,
    mm_dtype: GeType,
) -> Call:
    """inputs: gmm_x, gmm_weight and their scales, mm_x, mm_weight and their scales."""
    if any(transposed):
        raise ValueError("trans_gmm_weight and trans_mm_weight must be false, as torchair sets them")

    def pair(
        at: int, x: Tensor | None, weight: Tensor | None, x_scale: Tensor | None, weight_scale: Tensor | None
    ) -> tuple[_Operand, _Operand] | None:
        if x is None or weight is None or x_scale is None or weight_scale is None:
            return None
        operands = []
        for place, elements, scale in ((at, x, x_scale), (at + 1, weight, weight_scale)):
            name = scaled_operands.ge_name(node, place, elements)
            if name == scaled_operands.FLOAT4:
                raise NotImplementedError("products of float4 behind or before an AlltoAllv are not served in a graph")
            operands.append(_Operand(elements, name, scale))
        return operands[0], operands[1]

    gmm = pair(0, *inputs[:4])
    assert gmm is not None
    mm = pair(6, *inputs[4:])
    check = Checks("npu_alltoallv_quant_gmm or npu_quant_gmm_alltoallv")
    return Call(check, gmm, mm, modes, mm_modes, y_dtype.torch, mm_dtype.torch, group, ranks, counts, count_tensors)


def _ge_alltoallv_quant_grouped_mat_mul(
    gmm_x: Tensor,
    gmm_weight: Tensor,
    gmm_x_scale: Tensor,
    gmm_weight_scale: Tensor,
    send_counts_tensor: Tensor | None = None,
    recv_counts_tensor: Tensor | None = None,
    mm_x: Tensor | None = None,
    mm_weight: Tensor | None = None,
    mm_x_scale: Tensor | None = None,
    mm_weight_scale: Tensor | None = None,
    *,
    group: str,
    ep_world_size: int,
    send_counts: list,
    recv_counts: list,
    gmm_x_quant_mode: int,
    gmm_weight_quant_mode: int,
    trans_gmm_weight: bool = False,
    trans_mm_weight: bool = False,
    permute_out_flag: bool = False,
    mm_x_quant_mode: int = 0,
    mm_weight_quant_mode: int = 0,
    group_size: int = 0,
    y_dtype: GeType = 28,  # type: ignore[assignment]  # undefined, which is refused; torchair always gives it
    mm_dtype: GeType = 28,  # type: ignore[assignment]  # as y_dtype
    comm_mode: str = "",
    node: Planned,
) -> tuple[Tensor, Tensor, Tensor]:
    """GE AlltoAllvQuantGroupedMatMul."""
    call = ge_call(
        node,
        (gmm_x, gmm_weight, gmm_x_scale, gmm_weight_scale, mm_x, mm_weight, mm_x_scale, mm_weight_scale),
        (send_counts_tensor, recv_counts_tensor),
        group,
        ep_world_size,
        (send_counts, recv_counts),
        (gmm_x_quant_mode, gmm_weight_quant_mode),
        (mm_x_quant_mode, mm_weight_quant_mode),
        (trans_gmm_weight, trans_mm_weight),
        y_dtype,
        mm_dtype,
    )
    y, mm_y, routed = call.there()
    nothing = torch.empty(0)  # torchair describes what FX does not have as float32
    return y, nothing if mm_y is None else mm_y, routed if permute_out_flag else nothing


OPERATOR = of_torch_npu(
    "npu_alltoallv_quant_gmm",
    alltoallv_quant_gmm,
    ge=[GeKernel("AlltoAllvQuantGroupedMatMul", _ge_alltoallv_quant_grouped_mat_mul)],
)
