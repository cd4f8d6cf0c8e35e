"""`npu_moe_finalize_routing(expanded_permuted_rows, ...)`: the experts' results back at their tokens, weighted and summed.

    expanded_permuted_rows       [A, H], or [E, C, H] with a capacity C (drop_pad_mode 1 and 3), taken as [E * C, H]
    expanded_src_to_dst_row      int32 [N * K], the row of choice k of token n: at k * N + n (drop_pad_mode 0 and 1, by columns) or at
                                 n * K + k (2 and 3, by rows); -1 for a choice that has no row
    scales [N, K], bias [E, H] and export_for_source_row int32 [N, K], the expert of each choice (needed for bias)
    skip1, skip2 [N, H]          added as they are
    result [N, H]                skip1 + skip2 + sum over k of scales[n, k] * (row + bias[expert of n, k]), the row 0 where it is -1

K is the width of scales; without scales it is `k`, and the weights are 1. Summed in float32 and rounded once.

Sources: the operator's page in the torch_npu documentation, op-plugin's test of the operator (missing rows, skips), torch_npu's fake
implementation (shapes), the names of GE's MoeFinalizeRoutingV2. The documents promise inference only; the fallback has the gradients of
what it is composed of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import declare
from moe_graph.operators.ge import GeKernel

_check = Checks("npu_moe_finalize_routing")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
COLUMNS, COLUMNS_WITH_CAPACITY, ROWS, ROWS_WITH_CAPACITY = range(4)


def _check_arguments(
    rows: Tensor,
    skip1: Tensor | None,
    skip2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    index: Tensor,
    experts: Tensor | None,
    drop_pad_mode: int | None,
    k: int | None,
) -> tuple[int | torch.SymInt, int | torch.SymInt]:
    """N and K. Raises ValueError on what the documents exclude."""
    _check.value("drop_pad_mode", drop_pad_mode, (COLUMNS, COLUMNS_WITH_CAPACITY, ROWS, ROWS_WITH_CAPACITY))
    _check.dtype("expanded_permuted_rows", rows, DTYPES)
    with_capacity = drop_pad_mode in (COLUMNS_WITH_CAPACITY, ROWS_WITH_CAPACITY)
    shape = f"{'[E, C, H]' if with_capacity else '[A, H]'} with drop_pad_mode {drop_pad_mode}"
    _check.rank("expanded_permuted_rows", rows, (3,) if with_capacity else (2,), shape)
    _check.dtype("expanded_src_to_dst_row", index, (torch.int32,))
    _check.rank("expanded_src_to_dst_row", index, (1,), "[N * K]")
    if scales is not None:
        _check.dtype("scales", scales, DTYPES)
        _check.rank("scales", scales, (2,), "[N, K]")
        count, choices = scales.shape
        total = index.shape[0]
        _check.size(
            count * choices == total, "scales", f"of N * K = {total} elements, as expanded_src_to_dst_row", scales
        )
    else:
        if k is None or k < 1:
            _check.refuse("k", ">= 1 without scales", k)
        _check.size(index.shape[0] % k == 0, "expanded_src_to_dst_row", f"of a length that k = {k} divides", index)
        count, choices = index.shape[0] // k, k
    if bias is not None and experts is None:
        _check.refuse("export_for_source_row", "given with bias", None)
    if bias is not None:
        _check.dtype("bias", bias, (rows.dtype,))
        _check.rank("bias", bias, (2,), "[E, H]")
        _check.size(bias.shape[1] == rows.shape[-1], "bias", f"of shape [E, H], H = {rows.shape[-1]}", bias)
    if experts is not None:
        _check.dtype("export_for_source_row", experts, (torch.int32,))
        _check.rank("export_for_source_row", experts, (2,), "[N, K]")
        for size, wanted in zip(experts.shape, (count, choices)):
            _check.size(size == wanted, "export_for_source_row", f"of shape [N, K], [{count}, {choices}]", experts)
    for name, skip in (("skip1", skip1), ("skip2", skip2)):
        if skip is not None:
            _check.dtype(name, skip, (rows.dtype,))
            _check.rank(name, skip, (2,), "[N, H]")
            for size, wanted in zip(skip.shape, (count, rows.shape[-1])):
                _check.size(size == wanted, name, f"of shape [N, H], [{count}, {rows.shape[-1]}]", skip)
    named = {"expanded_src_to_dst_row": index, "scales": scales, "bias": bias, "export_for_source_row": experts}
    for name, tensor in {**named, "skip1": skip1, "skip2": skip2}.items():
        if tensor is not None:
            _check.device(name, tensor, "expanded_permuted_rows", rows)
    return count, choices


def fake(
    expanded_permuted_rows: Tensor,
    skip1: Tensor | None,
    skip2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    expanded_src_to_dst_row: Tensor,
    export_for_source_row: Tensor | None,
    drop_pad_mode: int | None = COLUMNS,
    k: int | None = 1,
) -> Tensor:
    """Shape of the result."""
    rows, index = expanded_permuted_rows, expanded_src_to_dst_row
    count, _ = _check_arguments(rows, skip1, skip2, bias, scales, index, export_for_source_row, drop_pad_mode, k)
    return rows.new_empty((count, rows.shape[-1]))


def finalize_routing(
    expanded_permuted_rows: Tensor,
    skip1: Tensor | None,
    skip2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    expanded_src_to_dst_row: Tensor,
    export_for_source_row: Tensor | None,
    drop_pad_mode: int | None = COLUMNS,
    k: int | None = 1,
) -> Tensor:
    """The result, as the module's document says. Raises ValueError on what it excludes."""
    rows, index, experts = expanded_permuted_rows, expanded_src_to_dst_row, export_for_source_row
    count, choices = _check_arguments(rows, skip1, skip2, bias, scales, index, experts, drop_pad_mode, k)
    by_columns = drop_pad_mode in (COLUMNS, COLUMNS_WITH_CAPACITY)
    index = index.view(choices, count).t() if by_columns else index.view(count, choices)
    # A row of zeros more, for the choices that have none.
    rows = torch.nn.functional.pad(rows.reshape(-1, rows.shape[-1]), (0, 0, 0, 1))
    missing = rows.shape[0] - 1
    values = rows[torch.where(index < 0, missing, index.long())].float()  # [N, K, H]
    if bias is not None:
        assert experts is not None  # checked: it is given with bias
        values = values + bias.float()[experts.long()]
    if scales is not None:
        values = values * scales.float().unsqueeze(-1)
    result = values.sum(1)
    for skip in (skip1, skip2):
        if skip is not None:
            result = result + skip.float()
    return result.to(expanded_permuted_rows.dtype)


def _ge_moe_finalize_routing(
    expanded_x: Tensor,
    x1: Tensor,
    x2: Tensor | None = None,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
    expanded_row_idx: Tensor | None = None,
    expanded_expert_idx: Tensor | None = None,
) -> Tensor:
    """GE MoeFinalizeRouting: npu_moe_finalize_routing with a skip, bias and scales, drop_pad_mode 0."""
    if expanded_row_idx is None:
        raise ValueError("expanded_row_idx must be given")
    return finalize_routing(expanded_x, x1, x2, bias, scales, expanded_row_idx, expanded_expert_idx)


def _ge_moe_finalize_routing_v2(
    expanded_x: Tensor,
    expanded_row_idx: Tensor,
    x1: Tensor | None = None,
    x2: Tensor | None = None,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
    expert_idx: Tensor | None = None,
    *,
    drop_pad_mode: int = 0,
    k: int = 1,
) -> Tensor:
    """GE MoeFinalizeRoutingV2: npu_moe_finalize_routing."""
    return finalize_routing(expanded_x, x1, x2, bias, scales, expanded_row_idx, expert_idx, drop_pad_mode, k)


OPERATOR = declare(
    "npu_moe_finalize_routing(Tensor expanded_permuted_rows, Tensor? skip1, Tensor? skip2, Tensor? bias, Tensor? scales, "
    "Tensor expanded_src_to_dst_row, Tensor? export_for_source_row, int? drop_pad_mode=0, int? k=1) -> Tensor",
    fake=fake,
    fallback=finalize_routing,
    differentiable=True,
    ge=[
        GeKernel("MoeFinalizeRouting", _ge_moe_finalize_routing),
        GeKernel("MoeFinalizeRoutingV2", _ge_moe_finalize_routing_v2),
    ],
)
