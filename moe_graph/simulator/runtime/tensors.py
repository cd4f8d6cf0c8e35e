"""One memory, two tensors: an NPU tensor of the simulated device and a CPU tensor over the same bytes."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

_CPU = torch.device("cpu")
_blocks: dict[tuple[int, int, torch.dtype], Tensor] = {}
_views: dict[tuple, Tensor] = {}
_MAX_BLOCKS = 4096


def is_npu(value: object) -> bool:
    """Is this a tensor on a (simulated) NPU?"""
    return isinstance(value, Tensor) and not value.is_cpu and value.device.type == "npu"


def is_host_memory_of_device(tensor: Tensor) -> bool:
    """Is this a CPU tensor that the dispatcher takes for the device's? torch_npu makes such weak references (`TensorWeakRef`)."""
    return tensor.is_cpu and torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.PrivateUse1)


def cpu_view(tensor: Tensor) -> Tensor:
    """A CPU tensor over the memory of an NPU tensor: same shape, strides and dtype, nothing copied. Keeps that memory alive."""
    storage = tensor.untyped_storage()
    size = storage.nbytes()
    if not size:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    block = (ctypes.c_char * size).from_address(storage.data_ptr())
    block.owner = storage  # frombuffer keeps the block, the block keeps the NPU memory
    shared = torch.frombuffer(block, dtype=torch.uint8).untyped_storage()
    view = torch.empty(0, dtype=tensor.dtype)
    view.set_(shared, tensor.storage_offset(), tensor.size(), tensor.stride())
    return _with_bits(view, tensor)


def borrowed_view(tensor: Tensor) -> Tensor:
    """As cpu_view, for the time of one call: it does not keep the memory alive, which makes it cheaper."""
    storage = tensor.untyped_storage()
    size = storage.nbytes()
    if not size:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    # torch_npu's allocator hands out the same blocks again and again: one CPU tensor over a block serves all views of it.
    key = (storage.data_ptr(), size, tensor.dtype)
    block = _blocks.get(key)
    if block is None:
        block = _block(*key)
    view = block.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
    return _with_bits(view, tensor)


def shared_view(tensor: Tensor) -> Tensor:
    """As borrowed_view, the same CPU tensor for the same bytes, shape and strides again: it must not be given others."""
    storage = tensor.untyped_storage()
    key = (
        storage.data_ptr(),
        storage.nbytes(),
        tensor.dtype,
        tensor.storage_offset(),
        tensor.size(),
        tensor.stride(),
        tensor.is_neg(),
        tensor.is_conj(),
    )
    view = _views.get(key)
    if view is None:
        if len(_views) >= _MAX_BLOCKS:
            _views.clear()
        _views[key] = view = borrowed_view(tensor)
    return view


def _block(address: int, size: int, dtype: torch.dtype) -> Tensor:
    if len(_blocks) >= _MAX_BLOCKS:
        _blocks.clear()
    shared = torch._C._construct_storage_from_data_pointer(address, _CPU, size)
    with torch.inference_mode(False):  # an inference tensor could not be written outside of inference mode
        _blocks[address, size, dtype] = block = torch.empty(0, dtype=dtype).set_(shared)
    return block


def _with_bits(view: Tensor, tensor: Tensor) -> Tensor:
    """The lazy conjugation and negation of complex tensors, of which some operators reach the device unresolved."""
    if tensor.is_conj():
        view = torch._conj(view)
    return torch._neg_view(view) if tensor.is_neg() else view


def to_npu(tensor: Tensor, device: torch.device) -> Tensor:
    """A new NPU tensor with the values of a CPU tensor, and with its strides where they leave no gap and no overlap."""
    if tensor.layout is not torch.strided:
        return tensor.to(device)  # torch moves its parts, strided tensors
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    strides = tensor.stride()
    dense = tensor.is_contiguous()
    if not dense:
        strides = torch.empty_like(tensor, device="meta", memory_format=torch.preserve_format).stride()
        dense = strides == tensor.stride()
    made = torch.empty_strided(tensor.size(), strides, dtype=tensor.dtype, device=device)
    size = tensor.nbytes
    if size and dense:
        ctypes.memmove(made.data_ptr(), tensor.data_ptr(), size)
    elif size:
        borrowed_view(made).copy_(tensor)
    return made


def npu_alias(tensor: Tensor, base: Tensor) -> Tensor:
    """The NPU tensor that lies in the memory of `base` as a CPU tensor lies in the memory of its CPU view."""
    made = torch.empty(0, dtype=tensor.dtype, device=base.device)
    made.set_(base.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    return _with_bits(made, tensor)
