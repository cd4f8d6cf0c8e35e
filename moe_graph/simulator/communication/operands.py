"""What the simulated `hccl` hands gloo: CPU tensors in the form that gloo takes, and options that it understands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_REFUSED_REDUCTIONS = ("BAND", "BOR", "BXOR")  # torch_npu's list; bitwise reductions are not in HCCL
_WIDER = {torch.int16: torch.int32}  # dtypes that HCCL reduces and gloo does not, and what gloo reduces instead


def as_list(tensors: Any) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def as_bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor as one row of bytes."""
    return tensor.view(-1).view(torch.uint8)


def as_rows(tensor: Tensor) -> Tensor:
    """A contiguous tensor as [rows, bytes of a row]: what splits along the first dimension need."""
    rows = tensor.shape[0] if tensor.dim() else 1
    return as_bytes(tensor).view(rows, tensor.shape[1:].numel() * tensor.element_size())


def rooted(root: int) -> Any:
    options = dist.BroadcastOptions()
    options.rootRank = root
    return options


def reduction(opts: Any, kind: type) -> Any:
    """The options of a reduction, made of a bare ReduceOp or of nothing; raises what torch_npu raises for what HCCL has not."""
    if opts is None or isinstance(opts, (dist.ReduceOp, dist.ReduceOp.RedOpType)):
        made = kind()
        if opts is not None:
            made.reduceOp = dist.ReduceOp(opts) if isinstance(opts, dist.ReduceOp.RedOpType) else opts
        opts = made
    for name in _REFUSED_REDUCTIONS:
        if opts.reduceOp == getattr(dist.ReduceOp, name):
            raise RuntimeError(f"Cannot use ReduceOp.{name} with HCCL")
    return opts


def copied(opts: Any, kind: type) -> Any:
    made = kind()
    made.reduceOp = opts.reduceOp
    made.timeout = opts.timeout
    if hasattr(made, "rootRank") and hasattr(opts, "rootRank"):
        made.rootRank, made.rootTensor = opts.rootRank, opts.rootTensor
    return made


def reducible(host: Tensor, opts: Any, kind: type) -> tuple[Tensor, Any, list[Callable[[], Any]]]:
    """(the tensor for gloo to reduce, gloo's options, what brings the result back): where gloo lacks a dtype, a wider one."""
    options = copied(opts, kind)
    if host.dtype == torch.bool and opts.reduceOp == dist.ReduceOp.SUM:
        options.reduceOp = dist.ReduceOp.MAX  # a sum of truth values is "any", in HCCL too
        return host.view(torch.uint8), options, []
    if host.dtype in _WIDER:
        wide = host.to(_WIDER[host.dtype])
        return wide, options, [lambda: host.copy_(wide)]
    return host, options, []
