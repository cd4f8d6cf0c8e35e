"""torch.npu.set_sync_debug_mode: what makes the host wait for the device warns or raises, as torch_npu's own kernels do.

torch_npu looks at the mode where it synchronises a stream, which kernels of the CPU do not. While the mode is on, each operator that waits
synchronises the current stream first, by torch_npu's function: its warning, or its error.
"""

from __future__ import annotations

from typing import Any

import torch

from moe_graph.simulator.runtime import launches


def install() -> None:
    """Look at the launches while the mode is on. Idempotent."""
    import torch_npu

    functions: Any = torch_npu._C
    original = functions._npu_set_sync_debug_mode
    if hasattr(original, "_original"):
        return

    def set_mode(mode: int) -> None:
        original(mode)
        launches.leave(_synchronise)
        if functions._npu_get_sync_debug_mode():
            launches.observe(_synchronise)

    set_mode._original = original  # type: ignore[attr-defined]
    functions._npu_set_sync_debug_mode = set_mode


def _synchronise(overload: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> None:
    traffic = launches.host_traffic(overload, args, kwargs)
    if traffic is not None and traffic.waits:
        torch.npu.current_stream().synchronize()
