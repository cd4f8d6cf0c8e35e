"""What the installed torch_npu wheel expects of CANN, read from its libraries.

Three things: the names of the libraries it is linked against, the symbols they must define before the dynamic linker lets it load,
and the names it looks up at run time, which stand in it as strings. Nothing is assumed of a version: another wheel, another list.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

from moe_graph.simulator.runtime.errors import SimulatorError

# Function names of CANN as they occur in strings: aclrtMalloc, aclnnAdd, HcclSend ...
_LOOKED_UP = re.compile(
    rb"(?<![A-Za-z0-9_])(?:acl(?:rt|nn|mdl|op|prof|tdt|sys)?[A-Z]|Hccl[A-Z])[A-Za-z0-9_]{2,}(?=\0)"
    rb"|(?<![A-Za-z0-9_])Atb[A-Z][A-Za-z0-9_]*GetWorkspaceSize(?=\0)"
)
# Mangled names in torch's namespaces, and its Python bindings'.
_OF_TORCH = re.compile(r"_Z(?:N[KR]*|T[VIST]N?)?(?:2at|3c10|5torch|8caffe2)|_Z\d+THP")
_PAIR = re.compile(r"(?:aclnn|Atb)[A-Z]")
# Of c10::CachingAllocator::AcceleratorAllocatorConfig::getMutableKeys: the function, or where it is inline (torch 2.11) its static set and
# the guard of that. The set: the keys of PYTORCH_ALLOC_CONF that torch's backends understand. Each backend adds its own when it is
# loaded, and one that is there already ends the process, as it does beside torch's CUDA build, which shares some with torch_npu. There
# torch_npu gets a set of its own.
_KEYS = "N3c1016CachingAllocator26AcceleratorAllocatorConfig14getMutableKeys"
ALLOCATOR_KEYS = (f"_Z{_KEYS}", f"_ZZ{_KEYS}", f"_ZGVZ{_KEYS}")
_WORKSPACE = "GetWorkspaceSize"
# Opened by name at run time, not linked: the operators, what the profiler uses, super kernels, dumps.
_OPENED = (
    "libopapi.so",
    "libmsprofiler.so",
    "libmspti.so",
    "libascend_hal.so",
    "libascendsk.so",
    "libascend_dump.so",
)


@dataclass(frozen=True)
class Requirements:
    """What to provide. `sonames`: libraries, in no order. `symbols`: all names that must resolve, C and C++."""

    sonames: tuple[str, ...]
    symbols: tuple[str, ...]


def libraries(wheel: Path) -> list[Path]:
    """The wheel's shared libraries (torch_npu's own, and torchair's)."""
    return sorted(wheel.rglob("*.so"))


def requirements(wheel: Path) -> Requirements:
    """What the libraries in the wheel's folder `torch_npu` want of CANN. torch must have been imported.

    Raises SimulatorError if pyelftools is missing or the folder has no libraries.
    """
    import torch

    try:
        from elftools.elf.elffile import ELFFile
    except ImportError as error:
        raise SimulatorError(
            "the simulated device needs pyelftools to read the torch_npu wheel: pip install pyelftools"
        ) from error
    files = libraries(wheel)
    if not files:
        raise SimulatorError(f"no shared library lies in the torch_npu wheel at {wheel}: reinstall torch_npu")
    needed: set[str] = set()
    undefined: set[str] = set()
    defined: set[str] = set()
    looked_up: set[str] = set()
    for file in files:
        with file.open("rb") as stream:
            elf = ELFFile(stream)
            dynamic = elf.get_section_by_name(".dynamic")
            needed.update(tag.needed for tag in dynamic.iter_tags("DT_NEEDED"))
            names = _dynamic_symbols(elf)
            undefined |= names[0]
            defined |= names[1]
        looked_up.update(match.decode() for match in _LOOKED_UP.findall(file.read_bytes()))
    # An operator is a pair of functions; one of the two names may have been built at run time.
    for name in list(looked_up):
        if _PAIR.match(name):
            base = name.removesuffix(_WORKSPACE)
            looked_up.update((base, base + _WORKSPACE))
    own = {file.name for file in files}
    found = _Found()
    missing = {name for name in undefined - defined if not found.symbol(name)}
    _check_torch(missing)
    if torch.version.cuda is not None:
        missing |= {name for name in undefined | defined if name.startswith(ALLOCATOR_KEYS)}
    symbols = missing | looked_up
    sonames = {name for name in needed - own if not found.library(name)} | set(_OPENED)
    return Requirements(tuple(sorted(sonames)), tuple(sorted(symbols)))


def _check_torch(missing: set[str]) -> None:
    """torch's own symbols must come from torch: where they are missing, the wheel was built for another version of it."""
    for name in sorted(missing):
        if _OF_TORCH.match(name):
            import torch

            raise SimulatorError(
                f"torch_npu was built for another torch than {torch.__version__} ({name} is missing): install the torch_npu "
                "of the same version"
            )


def _dynamic_symbols(elf) -> tuple[set[str], set[str]]:
    """(undefined, defined) names of the dynamic symbol table; weak undefined ones may stay undefined and are left out."""
    undefined, defined = set(), set()
    for symbol in elf.get_section_by_name(".dynsym").iter_symbols():
        if not symbol.name:
            continue
        if symbol["st_shndx"] != "SHN_UNDEF":
            defined.add(symbol.name)
        elif symbol["st_info"]["bind"] != "STB_WEAK":
            undefined.add(symbol.name)
    return undefined, defined


class _Found:
    """What this process can already resolve: the system's libraries, Python, and torch's."""

    def __init__(self) -> None:
        import torch

        self._folder = Path(torch.__file__).parent / "lib"
        # A look-up in a library searches those it depends on: torch_python brings in the whole of torch, libstdc++ and libc.
        self._handles = [ctypes.CDLL(None), ctypes.CDLL(str(self._folder / "libtorch_python.so"))]

    def symbol(self, name: str) -> bool:
        return name == "__tls_get_addr" or any(hasattr(handle, name) for handle in self._handles)

    def library(self, soname: str) -> bool:
        if (self._folder / soname).exists():
            return True
        try:
            ctypes.CDLL(soname)
        except OSError:
            return False
        return True
