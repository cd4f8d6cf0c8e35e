"""The way of plain calls of eager operators, in C++: plain_calls.cpp, compiled once for the installed torch.

The CPU's kernel is called without Python, a function of ours on CPU tensors with no more of it than itself. The Python kernel of an
operator stays, under a key of its own, for every other call. Results and errors are the same; what this saves is time, four fifths of what
an operator of torch costs more than on CPU tensors. Without a C++ compiler, or with MOE_GRAPH_SIM_PLAIN_CALLS=0, Python serves all.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from moe_graph.foundation import compat, cpu, machine
from moe_graph.operators import foreach, rounding
from moe_graph.simulator.eager import aten_operators, dtypes
from moe_graph.simulator.eager.call import Operator
from moe_graph.simulator.runtime import build, cache, captured, launches
from moe_graph.simulator.runtime.errors import SimulatorError

VARIABLE = "MOE_GRAPH_SIM_PLAIN_CALLS"
# Of plain_calls.cpp: keys of devices that torch has no backend for.
_FALLBACK, _FUNCTION = "PrivateUse3", "PrivateUse2"
_LIBRARY = "libmoe_graph_plain_calls.so"
_SOURCE = Path(__file__).with_suffix(".cpp")
_NOWHERE = -1
_FUNCTION_FOR_HALVES = frozenset({"aten::_softmax", "aten::_log_softmax"})
"""Operators with a function that does what the CPU's kernel does, but for half types."""
_FLAGS = "-O2 -fPIC -fvisibility=hidden -shared".split()

_log = logging.getLogger(__name__)
_registrations: list[torch.library.Library] = []


class Conditions(NamedTuple):
    """Which calls of an operator the CPU's kernel computes as it is, and where arguments stand: those of plain_calls.cpp, in its order."""

    by_kernel: bool
    by_function: bool
    halves: rounding.Halves = rounding.Halves.AS_THEY_ARE
    int32: bool = True
    if_one: int = _NOWHERE
    dtype: int = _NOWHERE
    device: int = _NOWHERE
    pin_memory: int = _NOWHERE


def serve(operator: Operator, kernel: Callable[..., Any]) -> None:
    """Serve an operator's plain calls from now on, if it has any; `kernel`, its Python kernel, serves the others."""
    library = None if operator.is_special else _library()
    if library is None:
        return
    conditions = conditions_of(operator)
    space, _, name = operator.overload.name().partition("::")
    registration = torch.library.Library(space, "IMPL")
    registration.m.impl(name, _FALLBACK, kernel)
    if conditions.by_function:
        registration.m.impl(name, _FUNCTION, compat.untraced(operator.function))
    _registrations.append(registration)
    schema = operator.overload._schema
    library.moe_plain_calls_serve(schema.name.encode(), schema.overload_name.encode(), *conditions)


def conditions_of(operator: Operator) -> Conditions:
    """The conditions of an operator: the CPU's kernel computes it by itself, or by a function that changes nothing under them."""
    overload, function = operator.overload, operator.function
    arguments = overload._schema.arguments
    places = {argument.name: place for place, argument in enumerate(arguments)}
    of_arguments = {name: places.get(name, _NOWHERE) for name in ("device", "pin_memory")}
    name, for_halves = rounding.base_name(overload), overload.name() in _FUNCTION_FOR_HALVES
    if (
        overload.namespace != "aten"
        or (overload.name() in aten_operators.FUNCTIONS and not for_halves)
        or foreach.of_lists(overload) is not None
        or name in dtypes.WHOLE_NUMBERS
    ):
        return Conditions(False, True, **of_arguments)
    halves, if_one = (rounding.Halves.NOT_AT_ALL, _NOWHERE) if for_halves else rounding.halves(overload)
    if halves == rounding.Halves.AS_A_PRODUCT and not all(map(cpu.multiplies, rounding.HALF)):
        halves = rounding.Halves.NOT_AT_ALL
    types = [place for place, argument in enumerate(arguments) if "ScalarType" in str(argument.real_type)]
    dtype = types[0] if types and halves != rounding.Halves.AS_THEY_ARE else _NOWHERE
    by_function = not isinstance(function, torch._ops.OpOverload)
    return Conditions(True, by_function, halves, name not in dtypes.INDICES, if_one, dtype, **of_arguments)


def count() -> int:
    """How many calls have been served without Python so far in this process."""
    library = _library()
    return 0 if library is None else int(library.moe_plain_calls_count())


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
        *[ctypes.c_char_p] * 2,
        *[ctypes.c_bool] * 2,
        ctypes.c_int,
        ctypes.c_bool,
        *[ctypes.c_int] * 4,
    ]
    library.moe_plain_calls_serve.restype = ctypes.c_bool
    library.moe_plain_calls_count.restype = ctypes.c_uint64
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
    arguments = [
        *_FLAGS,
        "-std=c++20" if compat.TORCH >= (2, 9) else "-std=c++17",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        f"-I{root / 'include'}",
        str(_SOURCE),
        f"-L{root / 'lib'}",
        "-ltorch_cpu",
        "-lc10",
    ]
    build.compile_library("C++", compiler, folder / _LIBRARY, arguments)
    return [_LIBRARY]
