"""One memory, two tensors: an NPU tensor of the simulated device and a CPU tensor over the same bytes."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor


def is_npu(value: object) -> bool:
    """Is this a tensor on a (simulated) NPU?"""
    return isinstance(value, Tensor) and value.device.type == "npu"


def cpu_view(tensor: Tensor) -> Tensor:
    """A CPU tensor over the memory of an NPU tensor: same shape, strides and dtype, nothing copied. Keeps that memory alive."""
    storage = tensor.untyped_storage()
    size = storage.nbytes()
    view = torch.empty(0, dtype=tensor.dtype)
    if size:
        block = (ctypes.c_char * size).from_address(storage.data_ptr())
        block.owner = storage  # frombuffer keeps the block, the block keeps the NPU memory
        view.set_(
            torch.frombuffer(block, dtype=torch.uint8).untyped_storage(),
            tensor.storage_offset(),
            tensor.size(),
            tensor.stride(),
        )
        return view
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)


def to_npu(tensor: Tensor, device: torch.device) -> Tensor:
    """A new NPU tensor with the values of a CPU tensor, and with its strides where they leave no gap and no overlap."""
    made = torch.empty_strided(tensor.shape, _dense_strides(tensor), dtype=tensor.dtype, device=device)
    if tensor.numel():
        cpu_view(made).copy_(tensor)
    return made


def _dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides of a dense tensor with the same order of dimensions."""
    if tensor.is_contiguous():
        return tensor.stride()
    return torch.empty_like(tensor, device="meta", memory_format=torch.preserve_format).stride()
