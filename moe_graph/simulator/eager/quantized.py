"""Quantised tensors (qint8, quint8, qint32) on the NPU, as torch_npu has them: what it moves by kernels of CANN is moved here by torch.

torch_npu registers 21 operators for them: they are made, read, viewed, copied, dequantised, flipped and added; any other is torch's
"Could not run ... with arguments from the 'Quantizednpu' backend", on a device too. Where torch stumbles over the dtype before it
looks for a kernel, and its error does not name the operator ("promoteTypes with quantized numbers", "convolution_overrideable not
implemented"), it is the same error here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moe_graph.foundation import compat
from moe_graph.simulator.runtime import native

KEY = "QuantizedPrivateUse1"
_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.QuantizedPrivateUse1)
WHOLE = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}


def _numbers(x: Tensor) -> Tensor:
    """The whole numbers of a quantised tensor, in its own memory."""
    numbers = torch.empty(0, dtype=WHOLE[x.dtype], device=x.device)
    return numbers.set_(x.untyped_storage(), x.storage_offset(), x.size(), x.stride())


def _clone(x: Tensor, *, memory_format: torch.memory_format | None = None) -> Tensor:
    """Contiguous. Raises RuntimeError for a format that torch_npu refuses, NotImplementedError for a tensor quantised per channel, which
    torch_npu cannot allocate."""
    if memory_format not in (None, torch.contiguous_format, torch.preserve_format):
        raise RuntimeError("NPU quantized clone only supports Contiguous or Preserve memory_format.")
    kind = {"dtype": x.dtype, "device": x.device}
    if x.qscheme() == torch.per_tensor_affine:
        made = torch._empty_affine_quantized(x.shape, scale=x.q_scale(), zero_point=x.q_zero_point(), **kind)
    else:
        channels = {"scales": x.q_per_channel_scales(), "zero_points": x.q_per_channel_zero_points()}
        made = torch._empty_per_channel_affine_quantized(x.shape, axis=x.q_per_channel_axis(), **channels, **kind)
    _numbers(made).copy_(_numbers(x))
    return made


def _contiguous(x: Tensor, *, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    if memory_format != torch.contiguous_format:
        raise RuntimeError("NPU quantized contiguous supports Contiguous memory format only.")
    return x if x.is_contiguous() else _clone(x)


def _view(x: Tensor, size: list[int]) -> Tensor:
    """Raises RuntimeError, torch's own, for a size that is no view."""
    like = torch.empty_strided(x.size(), x.stride(), device="meta").view(size)
    return torch.as_strided(x, like.size(), like.stride(), x.storage_offset())


def _copy_from(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def copy(source: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
        own(_KEYS, source, to, non_blocking)  # the checks, and the quantiser of `to` becomes the source's
        if source.is_quantized and to.is_quantized:
            _numbers(to).copy_(_numbers(source).reshape(to.shape))
        return to

    return copy


def _refused(qualified: str) -> Callable[..., Tensor]:
    def refuse(*args: object, **kwargs: object) -> Tensor:
        raise NotImplementedError(
            f"Could not run '{qualified}' with arguments from the 'Quantizednpu' backend: torch_npu has no kernel of it for quantised "
            "tensors; dequantize() them first"
        )

    return refuse


def install(aten: torch.library.Library) -> None:
    """Register them over torch_npu's. A torch_npu that has no quantised tensors stays without."""
    own = native.kernel_below("aten::_copy_from", KEY) if _is_registered("aten::_copy_from") else None
    functions = {"clone": _clone, "contiguous": _contiguous, "view": _view}
    if own is not None:
        functions["_copy_from"] = _copy_from(own)
    for name, function in functions.items():
        if _is_registered(f"aten::{name}"):
            aten.m.impl(name, KEY, compat.untraced(function))
    structured = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeExplicitAutogradNonFunctional")
    # what works out a dtype before it asks for a kernel
    for qualified in (*structured, "aten::convolution_overrideable"):
        space, _, name = qualified.partition("::")
        if space == "aten" and not _is_registered(qualified):
            aten.m.impl(name, KEY, compat.untraced(_refused(qualified)))


def _is_registered(qualified: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(qualified, KEY)
