"""Which products this machine's CPU computes by instructions of its own; the others go through float32.

Decided once for a process, by what torch and oneDNN say the CPU has and may use (ONEDNN_MAX_CPU_ISA), so that the same machine decides the
same way each time. Either way the sums are float32 (of int8: exact) and rounded once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import torch

_WITH_BFLOAT16 = ("BF16", "FP16", "AMX", "AVX10", "DEFAULT", "ALL")
"""Parts of the names of oneDNN's instruction sets that have products of bfloat16."""


@functools.cache
def multiplies(dtype: torch.dtype) -> bool:
    """Has the CPU products of this half type that are faster than those of float32 copies? float32 it always has."""
    if dtype == torch.float32:
        return True
    if dtype == torch.float16:
        return _says(torch.ops.mkldnn, "_is_mkldnn_fp16_supported")
    if dtype != torch.bfloat16:
        return False
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    return (
        any(name in allowed for name in _WITH_BFLOAT16)
        and _says(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
        and _says(torch.cpu, "_is_avx512_bf16_supported")
    )


@functools.cache
def int8_product() -> Callable[..., torch.Tensor] | None:
    """int8 [M, K] @ int8 [K, N] -> the exact sums [M, N] in int32, also into `out`; None where it would be slow or not exact.

    Without instructions for products of int8 oneDNN's sums of pairs are cut at 16 bits, so the largest ones are tried.
    """
    product = getattr(torch, "_int_mm", None)
    if product is None or not _says(torch.cpu, "_is_vnni_supported"):
        return None
    largest, smallest = (torch.full((64, 64), value, dtype=torch.int8) for value in (127, -128))
    exact = all(
        bool((product(x, w) == 64 * int(x[0, 0]) * int(w[0, 0])).all())
        for x in (largest, smallest)
        for w in (largest, smallest)
    )
    return product if exact else None


def _says(where: object, name: str) -> bool:
    """What a function of torch's answers; False where this torch has none."""
    try:
        return bool(getattr(where, name)())
    except AttributeError:
        return False
