"""Compile the simulated device's libraries for the installed wheel, once, into the user's cache.

The result is one library that defines everything, under the soname of one of CANN's, and an empty library for each other soname,
which depends on the first: every look-up, in whichever library torch_npu makes it, ends in the one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import subprocess
from pathlib import Path

from moe_graph.foundation import machine
from moe_graph.simulator.runtime import cache, symbols
from moe_graph.simulator.runtime.errors import SimulatorError

MAIN = "libascendcl.so"
_SOURCES = Path(__file__).parent
_FLAGS = "-std=c11 -O2 -fPIC -fexceptions -fvisibility=hidden -pthread -shared".split()


def wheel_folder() -> Path:
    """The folder of the installed torch_npu, found without running it. Raises SimulatorError if there is none."""
    spec = importlib.util.find_spec("torch_npu")
    if spec is None or spec.origin is None:
        raise SimulatorError(
            "the simulated device needs torch_npu, which is not installed: pip install moe_graph[simulator]"
        )
    return Path(spec.origin).parent


def ensure_built() -> list[Path]:
    """The libraries to load, in this order; compiled if the cache has none for this wheel, these sources and this CC.

    Once they are loaded they are this process's, whatever has changed since: a build here and now would find each symbol in them, and
    leave it out. Safe when several processes start at once. Raises SimulatorError if the wheel, pyelftools or a compiler is missing, or the
    compiler fails.
    """
    if _loaded:
        return _loaded
    wheel = wheel_folder()
    entry = machine.cache_folder() / "simulator" / _digest(wheel)
    return cache.made(entry, lambda folder: _build_into(folder, wheel), wheel=str(wheel))


_loaded: list[Path] = []


def mark_loaded(libraries: list[Path]) -> None:
    """Say that this process has loaded the libraries."""
    _loaded.extend(libraries)


def _digest(wheel: Path) -> str:
    """Identifies the wheel (by its version and the size and time of its largest library), our sources, the machine and CC."""
    main = wheel / "lib" / "libtorch_npu.so"
    stamp = main.stat() if main.exists() else wheel.stat()
    try:
        version = importlib.metadata.version("torch_npu")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    digest = hashlib.sha256(
        f"{version} {wheel} {stamp.st_size} {stamp.st_mtime_ns} {platform.machine()} {os.environ.get('CC', '')}".encode()
    )
    for source in [*_c_files(), *sorted(_SOURCES.glob("*.h")), Path(__file__), Path(symbols.__file__)]:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _c_files() -> list[Path]:
    return sorted(_SOURCES.glob("*.c"))


def _find_compiler() -> list[str]:
    """The command of a C compiler. Raises SimulatorError if there is none."""
    found = machine.c_compiler()
    if found is None:
        raise SimulatorError(
            "the simulated device needs a C compiler, once: install gcc or clang, set CC, or pip install ziglang"
        )
    return found


def _build_into(folder: Path, wheel: Path) -> list[str]:
    """The names of the libraries, the one that has everything first."""
    compiler = _find_compiler()
    wanted = symbols.requirements(wheel)
    names = [MAIN, *(name for name in wanted.sonames if name != MAIN)]
    (folder / "stubs.c").write_text(stub_source(wanted.symbols))
    (folder / "empty.c").write_text("extern int moe_graph_empty;\n")
    sources = [*_c_files(), folder / "stubs.c"]
    _compile(compiler, folder / MAIN, [*map(str, sources), f"-I{_SOURCES}", "-ldl"])
    for name in names[1:]:
        _compile(compiler, folder / name, [str(folder / "empty.c"), "-Wl,--no-as-needed", f"-L{folder}", "-l:" + MAIN])
    for source in folder.glob("*.c"):
        source.unlink()
    return names


def _compile(compiler: list[str], output: Path, arguments: list[str]) -> None:
    compile_library("C", compiler, output, [*_FLAGS, *arguments, f"-Wl,-soname,{output.name}"])


def compile_library(language: str, compiler: list[str], output: Path, arguments: list[str]) -> None:
    """Run a compiler. Raises SimulatorError with its first error if it fails."""
    command = [*compiler, *arguments, "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = (
            [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no message"]
        )
        raise SimulatorError(
            f"the {language} compiler failed on {output.name} ({shlex.join(command[: len(compiler)])}): {lines[0].strip()}"
        )


# ---- stubs: every symbol that no source file defines; they are weak, so that the sources' definitions win ----

# Functions that return a handle, by CANN's naming: aclopCreateAttr, acltdtCreateDataset ..., but not aclrtCreateStream.
_RETURNS_POINTER = re.compile(r"acl(?:tdt|op|prof|mdl)?Create[A-Z]|acltdtGetData(?:Item|AddrFromItem)$")
_CPP_DATA = re.compile(r"_ZT[VIST]|_ZGV")
# Called while the library is loaded, to put its operators into GE's factory (torch_npu 2.5), which nothing here reads.
_CPP_NOTED = re.compile(r"_ZN2ge23OperatorCreatorRegisterC")


def stub_source(names: tuple[str, ...]) -> str:
    """C source that defines each of the names as a function that fails and names itself.

    By kind: aclError functions return an error code, Hccl ones HCCL's, those that create a handle NULL, and C++ functions, whose
    return type is unknown, throw std::runtime_error (but `_CPP_NOTED` and `symbols.ALLOCATOR_KEYS`). C++ tables (vtables and type
    information) are zeroed: they load, and can only be used through an object that no stub hands out.
    """
    lines = ['#include "sim.h"', "#define STUB SIM_API __attribute__((weak))"]
    for name in names:
        if not name.isidentifier():
            raise SimulatorError(
                f"torch_npu wants the symbol {name!r}, which cannot be a C identifier: please report it"
            )
        if name.startswith(symbols.ALLOCATOR_KEYS):
            lines.append(_allocator_keys(name))
        elif _CPP_DATA.match(name):
            lines.append(f"STUB void *{name}[64] = {{0}};")
        elif _CPP_NOTED.match(name):
            lines.append(f"STUB void {name}(void) {{}}")
        elif name.startswith("_Z"):
            lines.append(f'STUB void {name}(void) {{ sim_not_modelled_cpp("{name}"); }}')
        elif name.startswith("Hccl"):
            lines.append(f'STUB int32_t {name}(void) {{ return sim_not_modelled_hccl("{name}"); }}')
        elif _RETURNS_POINTER.match(name):
            lines.append(f'STUB void *{name}(void) {{ return sim_not_modelled_pointer("{name}"); }}')
        else:
            operator = name.removesuffix("GetWorkspaceSize")  # both phases of an operator give its name
            lines.append(f'STUB aclError {name}(void) {{ return sim_not_modelled("{operator}"); }}')
    return "\n".join(lines) + "\n"


def _allocator_keys(name: str) -> str:
    """A set for torch_npu alone, in the form that its version of torch asks for: a function, an object or the object's guard."""
    if name.startswith("_ZGV"):
        return f"STUB char {name}[8] = {{1}};"  # the object is initialized
    if name.startswith("_ZZ"):
        return f"STUB sim_string_set {name} = SIM_EMPTY_SET({name});"
    return f"static sim_string_set keys = SIM_EMPTY_SET(keys);\nSTUB void *{name}(void) {{ return &keys; }}"
