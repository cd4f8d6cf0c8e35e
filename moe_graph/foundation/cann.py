"""Is CANN, the Ascend toolkit that torch_npu is linked against, on this machine?"""

from __future__ import annotations

import ctypes
import functools
import importlib.util

# torch_npu's libraries are bound to these two at load time; the toolkit's set_env.sh puts both on the search path.
_LIBRARIES = ("libascendcl.so", "libhccl.so")


@functools.cache
def is_present() -> bool:
    """True if the libraries of a real CANN can be loaded. Loads them, as torch_npu itself would a moment later."""
    try:
        for name in _LIBRARIES:
            ctypes.CDLL(name)
    except OSError:
        return False
    return True


def torch_npu_is_installed() -> bool:
    """True if a torch_npu wheel can be found. Does not run it."""
    return importlib.util.find_spec("torch_npu") is not None
