"""Operators of aten that are served without Python where a call is plain: plain_calls.cpp, compiled once for the installed torch.

The Python kernel of an operator stays, under a key of its own, for every other call. Results and errors are the same; what this saves is
time: a third to a tenth of the way through Python. Without a C++ compiler, or with MOE_GRAPH_SIM_PLAIN_CALLS=0, Python serves all.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from moe_graph.foundation import compat, cpu, machine
from moe_graph.operators import foreach, rounding
from moe_graph.simulator.eager import aten_operators, dtypes
from moe_graph.simulator.eager.call import Operator
from moe_graph.simulator.runtime import cache, captured, launches
from moe_graph.simulator.runtime.errors import SimulatorError

VARIABLE = "MOE_GRAPH_SIM_PLAIN_CALLS"
FALLBACK = "PrivateUse3"  # of plain_calls.cpp: a key of a device that torch has no backend for
_LIBRARY = "libmoe_graph_plain_calls.so"
_SOURCE = Path(__file__).with_suffix(".cpp")
_NOWHERE = -1
_FLAGS = "-O2 -fPIC -fvisibility=hidden -shared".split()

_log = logging.getLogger(__name__)
_registrations: list[torch.library.Library] = []


def serve(operator: Operator, kernel: Callable[..., Any]) -> None:
    """Serve an operator's plain calls from now on, if it has any; `kernel`, its Python kernel, serves the others."""
    conditions = _conditions(operator)
    library = _library() if conditions is not None else None
    if conditions is None or library is None:
        return
    space, _, name = operator.overload.name().partition("::")
    registration = torch.library.Library(space, "IMPL")
    registration.m.impl(name, FALLBACK, kernel)
    _registrations.append(registration)
    schema = operator.overload._schema
    library.moe_plain_calls_serve(schema.name.encode(), schema.overload_name.encode(), *conditions)


def _conditions(operator: Operator) -> tuple[int, bool, int, int, int, int] | None:
    """`Conditions` of plain_calls.cpp; None for an operator that another function computes, or that draws."""
    overload = operator.overload
    schema = overload._schema
    if (
        overload.namespace != "aten"
        or operator.is_special
        or overload.name() in aten_operators.FUNCTIONS
        or foreach.of_lists(overload) is not None
        or rounding.base_name(overload) in dtypes.WHOLE_NUMBERS
    ):
        return None
    halves, if_one = rounding.halves(overload)
    if halves == rounding.Halves.AS_A_PRODUCT and not all(map(cpu.multiplies, rounding.HALF)):
        halves = rounding.Halves.NOT_AT_ALL
    places = {argument.name: place for place, argument in enumerate(schema.arguments)}
    rounds = halves != rounding.Halves.AS_THEY_ARE
    types = [place for place, a in enumerate(schema.arguments) if "ScalarType" in str(a.real_type)]
    return (
        halves,
        rounding.base_name(overload) not in dtypes.INDICES,
        if_one,
        types[0] if types and rounds else _NOWHERE,
        places.get("device", _NOWHERE),
        places.get("pin_memory", _NOWHERE),
    )


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled calls; None where Python serves all."""
    if os.environ.get(VARIABLE, "1") == "0":
        return None
    try:
        library = ctypes.CDLL(str(ensure_built()))
    except (SimulatorError, OSError) as error:
        _log.info("eager operators are served by Python alone, which takes longer: %s", error)
        return None
    library.moe_plain_calls_watch.argtypes = [ctypes.c_void_p] * 2
    library.moe_plain_calls_serve.argtypes = [
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_bool,
        *[ctypes.c_int] * 4,
    ]
    library.moe_plain_calls_serve.restype = ctypes.c_bool
    library.moe_plain_calls_watch(captured.counter(), ctypes.addressof(launches.observer_count))
    return library


def ensure_built() -> Path:
    """The library; compiled, in some ten seconds, if the cache has none for this torch, this source and this CXX.

    Raises SimulatorError if there is no C++ compiler or it fails.
    """
    entry = machine.cache_folder() / "simulator" / _digest()
    (found,) = cache.made(entry, _compile_into, torch=torch.__version__)
    return found


def _digest() -> str:
    parts = (torch.__version__, torch.__file__, platform.machine(), os.environ.get("CXX", ""))
    sources = (_SOURCE.read_bytes(), Path(__file__).read_bytes())
    return hashlib.sha256(" ".join(parts).encode() + b"".join(sources)).hexdigest()[:16]


def _compile_into(folder: Path) -> list[str]:
    compiler = machine.cxx_compiler()
    if compiler is None:
        raise SimulatorError("no C++ compiler: install g++ or clang++, or set CXX")
    root = Path(torch.__file__).parent
    command = [
        *compiler,
        *_FLAGS,
        "-std=c++20" if compat.TORCH >= (2, 9) else "-std=c++17",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        f"-I{root / 'include'}",
        str(_SOURCE),
        f"-L{root / 'lib'}",
        "-ltorch_cpu",
        "-lc10",
        "-o",
        str(folder / _LIBRARY),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise SimulatorError(f"the C++ compiler failed on {_SOURCE.name} ({' '.join(compiler)}): {errors[0].strip()}")
    return [_LIBRARY]
