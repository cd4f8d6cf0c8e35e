"""torch_npu's own operators: on CPU tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moe_graph.simulator.eager_call import as_dtype


def _cast(x: Tensor, dtype: int, *_: Any) -> Tensor:
    """These take dtypes as torch's numbers, and behind them what only a kernel of the NPU would use."""
    return x.to(as_dtype(dtype), copy=True)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "npu::npu_dtype_cast": _cast,
    "npu::_npu_dtype_cast": _cast,
    "npu::npu_dtype_cast_backward": _cast,
    "npu::_npu_dtype_cast_backward": _cast,
    "npu::npu_dtype_cast_": lambda x, source: x.copy_(source),
    "npu::one_": lambda x: x.fill_(1),
    "npu::_amp_foreach_non_finite_check": lambda grads: not all(bool(g.isfinite().all()) for g in grads),
    "npu::npu_alloc_float_status": lambda x: torch.zeros(8),
    "npu::npu_get_float_status": lambda x, mode=0: torch.zeros(8),
    "npu::npu_clear_float_status": lambda x, mode=0: torch.zeros(8),
}
