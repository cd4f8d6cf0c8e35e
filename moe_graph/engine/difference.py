"""Where a tensor of the engine differs from the one expected, within the tolerances of its dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# rtol, atol: those torch.testing.assert_close documents. Other dtypes must agree exactly.
_TOLERANCES = {
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
    torch.complex64: (1.3e-6, 1e-5),
    torch.complex128: (1e-7, 1e-7),
}


def describe_difference(
    got: Tensor, expected: Tensor | float, rtol: float | None, atol: float | None
) -> dict[str, Any]:
    """What of an FxTensor describes a difference; empty if there is none."""
    if not isinstance(expected, Tensor):  # a size, which GE computes as a tensor of one element
        if got.numel() == 1 and got.item() == expected:
            return {}
        return {"engine": got.tolist(), "expected": expected, "count": 1}
    if got.shape != expected.shape or got.dtype != expected.dtype:
        described = [f"{x.dtype} {list(x.shape)}" for x in (got, expected)]
        return {"engine": described[0], "expected": described[1], "count": max(got.numel(), expected.numel())}
    relative, absolute = _TOLERANCES.get(expected.dtype, (0.0, 0.0))
    relative, absolute = relative if rtol is None else rtol, absolute if atol is None else atol
    wide = _wide(expected.dtype)
    a, b = got.to(wide), expected.to(wide)
    differs = ~torch.isclose(a, b, rtol=relative, atol=absolute, equal_nan=True)
    if not differs.any():
        return {}
    position = tuple(differs.nonzero()[0].tolist())
    errors = (a - b).abs()[differs].double()
    finite = errors[errors.isfinite()]
    return {
        "position": position,
        "engine": a[position].item(),
        "expected": b[position].item(),
        "max_abs_error": finite.max().item() if finite.numel() else float("inf"),
        "count": int(differs.sum()),
    }


def _wide(dtype: torch.dtype) -> torch.dtype:
    """A dtype that holds the values of another one and can be computed with."""
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else torch.int64
