"""Sparse COO tensors on the NPU: the one kernel of them that torch_npu asks CANN for (aclnnCoalesceSparse).

What else torch_npu registers for sparse tensors is composed of operators on their parts, or goes by its own fallback to the CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe_graph.foundation import compat

_SUMMED_IN_FLOAT32 = (torch.float16, torch.bfloat16)


def install(aten: torch.library.Library) -> None:
    """Serve `coalesce` of sparse NPU tensors; `aten` registers it."""
    aten.m.impl("_coalesce", "SparsePrivateUse1", compat.untraced(_coalesce))


def _coalesce(sparse: Tensor) -> Tensor:
    """The tensor with each place once, in order, and the sums of its values there: half types summed in float32, rounded once."""
    if sparse._nnz() < 2:
        return sparse.clone()._coalesced_(True)
    indices, values = sparse._indices(), sparse._values()
    sizes = sparse.shape[: sparse.sparse_dim()]
    flat = torch.zeros_like(indices[0]) if sizes else indices.new_zeros(sparse._nnz())
    for row, size in zip(indices, sizes):
        flat = flat * size + row
    places, position = torch.unique(flat, sorted=True, return_inverse=True)
    wide = values.float() if values.dtype in _SUMMED_IN_FLOAT32 else values
    sums = wide.new_zeros(places.numel(), *values.shape[1:]).index_add_(0, position, wide)
    found = indices.new_zeros(len(sizes), places.numel())
    for at, size in enumerate(sizes):
        found[at] = places // math.prod(sizes[at + 1 :]) % size
    return torch.sparse_coo_tensor(
        found, sums.to(values.dtype), sparse.shape, check_invariants=False, is_coalesced=True
    )
