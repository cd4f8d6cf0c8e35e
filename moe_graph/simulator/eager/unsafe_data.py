"""Marks of recovery (`torch_npu.npu.restart_device`): data that a fault of memory may have spoilt is refused as an operand.

torch_npu's allocator keeps the marks. Its kernels look at them while the flag is on, which those that stand in for them do not: here
each operator looks first, and a copy takes the mark from what it fills.
"""

from __future__ import annotations

from typing import Any

import torch

from moe_graph.foundation import transforms
from moe_graph.simulator.runtime import launches
from moe_graph.simulator.runtime.tensors import is_npu

_COPIES = ("aten::copy_", "aten::_foreach_copy_")


def install() -> None:
    """Look at the operands of launches while the flag is on. Idempotent."""
    import torch_npu

    functions: Any = torch_npu._C
    original = getattr(functions, "_set_npu_data_unsafe_flag", None)
    if original is None or hasattr(original, "_original"):
        return

    def set_flag(flag: bool) -> None:
        original(flag)
        launches.leave(_look)
        if flag:
            launches.observe(_look)

    set_flag._original = original  # type: ignore[attr-defined]
    functions._set_npu_data_unsafe_flag = set_flag


def _look(overload: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raises RuntimeError, with torch_npu's words, for an operand that is marked: by position, or an `out=`."""
    import torch_npu
    from torch_npu.utils._error_code import ErrCode, pta_error

    schema = overload._schema
    operands = [*args, *(kwargs[one.name] for one in schema.arguments if one.is_out and one.name in kwargs)]
    filled = []
    if schema.name in _COPIES:
        filled, operands = operands[:1], operands[1:2]
    functions: Any = torch_npu._C
    for tensor in transforms.tensors(*operands):
        if is_npu(tensor) and not functions._check_npu_data_ptr(tensor.untyped_storage()):
            raise RuntimeError("There is unsafe data in the input tensor." + pta_error(ErrCode.VALUE))
    for tensor in transforms.tensors(*filled):
        if is_npu(tensor):
            functions._update_npu_data_ptr(tensor.untyped_storage())
