"""The record of the calls of aclnnMoeReRouting: what torch_npu's C++ adapter handed to the kernel."""

from __future__ import annotations

import ctypes
import math
import threading
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_graph.simulator.runtime.library import runtime

_MAX_DIMS = 16  # SIM_MAX_DIMS of sim.h

# aclDataType numbers of the operands that the kernel takes; names as in CANN.
_DTYPES = {
    0: "FLOAT",
    1: "FLOAT16",
    2: "INT8",
    3: "INT32",
    4: "UINT8",
    9: "INT64",
    27: "BF16",
    34: "HIFLOAT8",
    35: "FLOAT8_E5M2",
    36: "FLOAT8_E4M3FN",
    37: "FLOAT8_E8M0",
    40: "FLOAT4_E2M1",
    41: "FLOAT4_E1M2",
}
_FLOAT8 = {35: "float8_e5m2", 36: "float8_e4m3fn", 37: "float8_e8m0fnu"}


class _TensorRecord(ctypes.Structure):  # tensor_record of moe_re_routing.c
    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("dims", ctypes.c_int64 * _MAX_DIMS),
        ("contiguous", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class _CallRecord(ctypes.Structure):  # call_record of moe_re_routing.c
    _fields_ = [
        ("number", ctypes.c_uint64),
        ("tokens", _TensorRecord),
        ("counts", _TensorRecord),
        ("scales", _TensorRecord),
        ("expert_token_num_type", ctypes.c_int64),
        ("idx_type", ctypes.c_int64),
        ("device", ctypes.c_int32),
        ("status", ctypes.c_int32),
    ]


@dataclass(frozen=True)
class Operand:
    """An aclTensor as the kernel saw it.

    Attributes:
        dtype: by CANN's name
        shape: its sizes
        contiguous: was it?
    """

    dtype: str
    shape: tuple[int, ...]
    contiguous: bool


@dataclass(frozen=True)
class KernelCall:
    """One launch of aclnnMoeReRouting.

    Attributes:
        number: counts from 1 in this process
        tokens: [A, H]
        expert_token_num_per_rank: [N, E]
        per_token_scales: None if none were given
        expert_token_num_type: as given
        idx_type: as given
        device: index of the device
        status: 0 on success, else CANN's error code
    """

    number: int
    tokens: Operand
    expert_token_num_per_rank: Operand
    per_token_scales: Operand | None
    expert_token_num_type: int
    idx_type: int
    device: int
    status: int


def _operand(record: _TensorRecord) -> Operand | None:
    if record.rank < 0:
        return None
    return Operand(
        _DTYPES.get(record.dtype, str(record.dtype)), tuple(record.dims[: record.rank]), bool(record.contiguous)
    )


# The same numbers in torch's types. Half bytes and HiFloat8 have none.
_TORCH = {
    0: torch.float32,
    1: torch.float16,
    2: torch.int8,
    3: torch.int32,
    4: torch.uint8,
    9: torch.int64,
    27: torch.bfloat16,
    **{number: getattr(torch, name) for number, name in _FLOAT8.items() if hasattr(torch, name)},
}


def results(library: ctypes.CDLL, launch: int) -> list[Tensor | None]:
    """What a launch has given, as CPU tensors on its memory: tokens, scales, places, counts. None for scales that were not given.

    None, too, for a type that torch has not.
    """
    found: list[Tensor | None] = []
    library.moe_sim_re_routing_result.restype = ctypes.c_void_p
    library.moe_sim_re_routing_result.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(_TensorRecord)]
    for index in range(4):
        record = _TensorRecord()
        address = library.moe_sim_re_routing_result(launch, index, ctypes.byref(record))
        dtype = _TORCH.get(record.dtype)
        if record.rank < 0 or dtype is None:
            found.append(None)
            continue
        shape = tuple(record.dims[: record.rank])
        size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
        block = (ctypes.c_char * size).from_address(address) if size else bytearray()
        found.append(torch.frombuffer(block, dtype=dtype).view(shape) if size else torch.empty(shape, dtype=dtype))
    return found


_RECORD_LENGTH = 65536  # RECORD_LENGTH of moe_re_routing.c
_lock = threading.Lock()
_read: deque[KernelCall] = deque(maxlen=_RECORD_LENGTH)


def read(library: ctypes.CDLL) -> list[KernelCall]:
    """The launches that are still recorded (the last 65536), oldest first. Reads only those that have come since the last time."""
    library.moe_sim_call_count.restype = ctypes.c_uint64
    library.moe_sim_call.restype = ctypes.c_bool
    library.moe_sim_call.argtypes = [ctypes.c_uint64, ctypes.POINTER(_CallRecord)]
    record = _CallRecord()
    with _lock:
        known = _read[-1].number if _read else 0
        count = library.moe_sim_call_count()
        for number in range(max(known + 1, count - _RECORD_LENGTH + 1), count + 1):
            if library.moe_sim_call(number, ctypes.byref(record)):
                _read.append(_call(record))
        return list(_read)


def _call(record: _CallRecord) -> KernelCall:
    return KernelCall(
        record.number,
        _operand(record.tokens),
        _operand(record.counts),
        _operand(record.scales),
        record.expert_token_num_type,
        record.idx_type,
        record.device,
        record.status,
    )


def kernel_calls() -> list[KernelCall]:
    """The calls of aclnnMoeReRouting so far (at most the last 65536), oldest first: what torch_npu's adapter handed to the kernel.

    Raises SimulatorError if the simulated device does not run.
    """
    return read(runtime())
