"""What the simulated `hccl` hands gloo: CPU tensors in the form that gloo takes, and options that it understands."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from moe_graph.simulator.runtime.tensors import is_npu

_REFUSED_REDUCTIONS = ("BAND", "BOR", "BXOR")  # torch_npu's list; bitwise reductions are not in HCCL
_REDUCTIONS = ("SUM", "AVG", "PRODUCT", "MIN", "MAX", "PREMUL_SUM")
_WIDER = {torch.int16: torch.int32}  # dtypes that HCCL reduces and gloo does not, and what gloo reduces instead
_SMALL = (torch.bool, torch.uint8)  # HCCL reduces them as int32
_BASE_FORMATS = (0, 1, 2, 27, 30)  # NCHW, NHWC, ND, NDHWC, NCDHW
_FACTORED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def as_list(tensors: Any) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def as_bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor as one row of bytes."""
    return tensor.view(-1).view(torch.uint8)


def check_sendable(operation: str, tensor: Tensor) -> None:
    """As HCCL refuses it: raises ValueError unless the tensor is contiguous, RuntimeError for a part of one in a private format."""
    if not tensor.is_contiguous():
        raise ValueError(
            f"Tensors must be contiguous: {operation} got strides {tensor.stride()} of {tuple(tensor.shape)}"
        )
    if tensor.storage_offset() and is_npu(tensor) and not isinstance(tensor, FakeTensor):
        import torch_npu

        if int(torch_npu.get_npu_format(tensor)) not in _BASE_FORMATS:
            raise RuntimeError(f"For a tensor of internal format, it's storage_offset must be 0: {operation}")


def whole_numbers(sizes: Iterable[Any] | None) -> list[int]:
    """Sizes of splits as torch's binding takes them: in any sequence, a NumPy array too. Raises TypeError for other numbers."""
    return [] if sizes is None else [operator.index(size) for size in sizes]


def size_of(tensor: Tensor) -> int:
    """In bytes."""
    return tensor.numel() * tensor.element_size()


def as_rows(tensor: Tensor) -> Tensor:
    """A contiguous tensor as [rows, bytes of a row]: what splits along the first dimension need."""
    rows = tensor.shape[0] if tensor.dim() else 1
    return as_bytes(tensor).view(rows, tensor.shape[1:].numel() * tensor.element_size())


def described(tensors: Sequence[Tensor]) -> str:
    """Numbers of elements and dtypes in words: "4 float32", "4 + 2 float32"."""
    by_dtype: dict[torch.dtype, list[int]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor.numel())
    words = []
    for dtype, sizes in by_dtype.items():
        shown = " + ".join(map(str, sizes)) if len(sizes) <= 4 else f"{sum(sizes)} in {len(sizes)} tensors of"
        words.append(f"{shown} {dtypes_name(dtype)}")
    return ", ".join(words)


def dtypes_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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


def reductions_name(op: Any) -> str:
    return next((name for name in _REDUCTIONS if op == getattr(dist.ReduceOp, name, None)), str(op))


def copied(opts: Any, kind: type) -> Any:
    made = kind()
    made.reduceOp = opts.reduceOp
    made.timeout = opts.timeout
    for name in ("rootRank", "rootTensor", "asyncOp"):
        if hasattr(made, name) and hasattr(opts, name):
            setattr(made, name, getattr(opts, name))
    return made


def reducible(host: Tensor, opts: Any, kind: type, ranks: int) -> tuple[Tensor, Any, list[Callable[[], Any]]]:
    """(the tensor for gloo to reduce, gloo's options, what brings the result back), as HCCL reduces it.

    Where gloo lacks a dtype, a wider one; AVG is the sum, divided, of integers toward zero; PREMUL_SUM the sum of products, of floats.
    """
    options, name = copied(opts, kind), reductions_name(opts.reduceOp)
    if host.dtype == torch.bool and name == "SUM":
        options.reduceOp = dist.ReduceOp.MAX  # a sum of truth values is "any", in HCCL too
        return host.view(torch.uint8), options, []
    if name not in ("AVG", "PREMUL_SUM"):
        if host.dtype not in _WIDER:
            return host, options, []
        wide = host.to(_WIDER[host.dtype])
        return wide, options, [lambda: host.copy_(wide)]
    options.reduceOp = dist.ReduceOp.SUM
    if name == "PREMUL_SUM":
        if host.dtype not in _FACTORED:
            raise RuntimeError("PreMulSum Data type must be half, float, bfloat16 or double")
        product = host * opts.reduceOp.__getstate__()[1]
        return product, options, [lambda: host.copy_(product)]
    total = host.to(torch.int32 if host.dtype in _SMALL else _WIDER.get(host.dtype, host.dtype))
    total = host.clone() if total is host else total
    rounding = None if total.is_floating_point() or total.is_complex() else "trunc"
    return total, options, [lambda: host.copy_(total.div_(ranks, rounding_mode=rounding))]
