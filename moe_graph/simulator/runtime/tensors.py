"""One memory, two tensors: an NPU tensor of the simulated device and a CPU tensor over the same bytes."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from moe_graph.simulator.runtime.library import runtime

_CPU = torch.device("cpu")
_blocks: dict[tuple[int, int, torch.dtype], Tensor] = {}
_views: dict[tuple, Tensor] = {}
_MAX_BLOCKS = 4096
_LARGE = 256 << 20  # bytes from which on this machine's memory is looked at, as in host_memory.c
_BLOCK = 512  # torch_npu's allocator hands out multiples of this many bytes, at addresses that are


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
        return _of_nothing(tensor)
    size = max(size, _reach(tensor))
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
        return _of_nothing(tensor)
    if size >= _LARGE:
        _check_memory(tensor)
    # torch_npu's allocator hands out the same blocks again and again: one CPU tensor over a block serves all views of it.
    key = (storage.data_ptr(), size, tensor.dtype)
    block = _blocks.get(key)
    if block is None:
        block = _block(*key)
    try:
        view = block.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
    except RuntimeError:  # it reaches beyond its storage, or this is an error of its own
        view = _block(key[0], _reach(tensor), tensor.dtype).as_strided(
            tensor.size(), tensor.stride(), tensor.storage_offset()
        )
    return _with_bits(view, tensor)


def _check_memory(tensor: Tensor) -> None:
    """Raises OutOfMemoryError if this machine, which holds of a device's memory what is written, cannot hold the tensor."""
    if tensor.nbytes < _LARGE:
        return
    needed, left = ctypes.c_size_t(), ctypes.c_size_t()
    if _lacks_memory()(tensor.data_ptr(), tensor.nbytes, ctypes.byref(needed), ctypes.byref(left)):
        raise torch.OutOfMemoryError(
            f"NPU out of memory. Tried to allocate {needed.value / 2**30:.2f} GiB: the device has them, but on the simulated "
            f"device this machine holds what is written, and it has {left.value / 2**30:.2f} GiB left"
        )


@functools.cache
def _lacks_memory() -> Callable[..., bool]:
    function = runtime().moe_sim_lacks_memory
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = ctypes.c_bool
    return function


def _reach(tensor: Tensor) -> int:
    """The bytes from the start of its storage to the tensor's last one.

    A storage that was made smaller than its tensor is read and written on a device, too: the allocator's units that it lies in are the
    program's. Raises RuntimeError for a tensor that reaches beyond them.
    """
    storage = tensor.untyped_storage()
    last = sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride())) if tensor.numel() else -1
    needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
    end = storage.data_ptr() + storage.nbytes()
    owned = storage.nbytes() + (0 if tensor.is_cpu else -end % _BLOCK)
    if needed > owned:
        raise RuntimeError(
            f"a tensor of {tensor.dtype}, size {list(tensor.size())}, strides {list(tensor.stride())}, storage offset "
            f"{tensor.storage_offset()} needs a storage of {needed} bytes, its storage has {storage.nbytes()}: a device would "
            "read and write what lies behind it"
        )
    return needed


def _of_nothing(tensor: Tensor) -> Tensor:
    """The CPU tensor of one without memory. Raises RuntimeError where the tensor has elements: its storage was freed."""
    if tensor.numel():
        _reach(tensor)
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)


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
        with torch.npu.device(
            device
        ):  # torch moves its parts, strided tensors, and makes the whole on the current device
            return tensor.to(device)
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    strides = tensor.stride()
    dense = tensor.is_contiguous()
    if not dense:
        strides = torch.empty_like(tensor, device="meta", memory_format=torch.preserve_format).stride()
        dense = strides == tensor.stride()
    made = torch.empty_strided(tensor.size(), strides, dtype=tensor.dtype, device=device)
    size = tensor.nbytes
    if size >= _LARGE:
        _check_memory(made)
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
