"""Tensors of a survey that hold no values of the program: stand-ins, and what is computed from them on the device or in a graph.

A stand-in is filled with NaN, of whole numbers 0, of truth values False, and its memory is marked; so is that of what is computed from it.
What an operator refuses of marked tensors is a consequence, no finding. Marks do not follow values through the host, nor from rank to
rank, nor through the replays of a captured graph; NaN does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from moe_graph.foundation import transforms

_ALL_ONES = (
    "e8m0fnu"  # how the name of the float8 dtype ends whose NaN has all bits set; that of the others starts with a 0
)
_MANY = 4096
_lock = threading.Lock()
_marked: dict[int, StorageWeakRef] = {}


class _Call(threading.local):
    answered = False  # has a stand-in answered in the call that is under way?
    fed = False  # is one of its arguments marked?


call = _Call()


def computed(compute: Callable[[], Any], *arguments: Any, written: Sequence[Any] = ()) -> Any:
    """What a launch or a graph gives, called here; marked, with what it has written to, if it hangs on a stand-in."""
    outer = call.answered, call.fed
    call.answered, call.fed = False, are_marked(*arguments)
    try:
        result = compute()
        if call.answered or call.fed:
            mark(result, *written)
        return result
    finally:
        call.answered, call.fed = outer


def without_values(tensor: Tensor) -> Tensor:
    """The tensor, filled with NaN, or with 0 or False where its dtype has no NaN."""
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
        return (
            tensor.view(torch.uint8).fill_(0xFF if str(tensor.dtype).endswith(_ALL_ONES) else 0x7F).view(tensor.dtype)
        )
    has_nan = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    return tensor.fill_(float("nan") if has_nan else 0)


def mark(*values: Any) -> None:
    """Mark the memory of the tensors among these as having no values of the program."""
    with _lock:
        if len(_marked) > _MANY:
            for number in [number for number, storage in _marked.items() if storage.expired()]:
                del _marked[number]
        for tensor in transforms.tensors(*values):
            storage = StorageWeakRef(tensor.untyped_storage())
            _marked[storage.cdata] = storage


def are_marked(*values: Any) -> bool:
    """Is there a tensor among these in memory of a stand-in, or of what was computed from one?"""
    if not _marked:
        return False
    found = (_marked.get(tensor.untyped_storage()._cdata) for tensor in transforms.tensors(*values))
    return any(storage is not None and not storage.expired() for storage in found)
