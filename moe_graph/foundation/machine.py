"""What the simulated device's build takes from the machine: compilers, and a folder to keep what it has compiled."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import sys
from pathlib import Path


def c_compiler() -> list[str] | None:
    """The command of a C compiler: CC, cc, gcc, clang or zig's; None if there is none."""
    found = _compiler("CC", "cc", "gcc", "clang")
    if found is None and importlib.util.find_spec("ziglang") is not None:
        # Without a named target zig asks the system's own cc what "native" is, and there is none.
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{platform.machine()}-linux-gnu"]
    return found


def cxx_compiler() -> list[str] | None:
    """The command of a C++ compiler with the standard library that torch is built with: CXX, c++, g++ or clang++; None if there is none."""
    return _compiler("CXX", "c++", "g++", "clang++")


def _compiler(variable: str, *names: str) -> list[str] | None:
    chosen = shlex.split(os.environ.get(variable, ""))
    if chosen and shutil.which(chosen[0]):
        return chosen
    found = next(filter(None, map(shutil.which, names)), None)
    return None if found is None else [found]


def cache_folder() -> Path:
    """MOE_GRAPH_CACHE, else moe_graph in the XDG cache folder."""
    chosen = os.environ.get("MOE_GRAPH_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moe_graph"
