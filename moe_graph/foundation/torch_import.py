"""Import torch, also where a torch_npu wheel lies without CANN.

torch autoloads torch_npu, which is linked against CANN: with the wheel installed and no CANN, a plain `import torch` fails.
Importing this module first makes torch importable there, without torch_npu. Where CANN is, nothing is changed.
"""

from __future__ import annotations

import os
import sys

from moe_graph.foundation import cann

_SWITCH = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def _import_torch_without_autoload() -> None:
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "0"
    try:
        import torch  # noqa: F401
    finally:
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before


if "torch" not in sys.modules and "torch._C" in sys.modules:
    raise ImportError(
        "an `import torch` has failed in this process before, and left a part of torch behind, which cannot be imported twice: start a new "
        "process (in a notebook: restart the kernel). Without CANN it fails in torch_npu, for libhccl.so: `import moe_graph` "
        "before torch, or run `moe-graph activate` once in this environment; `moe-graph doctor` says more",
        name="torch",
    )
if "torch" not in sys.modules and cann.torch_npu_is_installed() and not cann.is_present():
    _import_torch_without_autoload()
