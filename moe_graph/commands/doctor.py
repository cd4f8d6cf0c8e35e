"""`moe-graph doctor`: look at this machine, say what works and what does not, and the one command that fixes it.

It reads the metadata of what is installed; whether torch can be imported and whether the device starts is tried in processes of their own,
so it works where they fail. It imports neither torch nor torch_npu itself.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from moe_graph.commands import switch
from moe_graph.foundation import cann, machine

# What torchair and the simulated device import besides; module -> package.
NEEDED = {"google.protobuf": "protobuf", "yaml": "PyYAML", "packaging": "packaging", "elftools": "pyelftools"}
_TORCH = "import torch; print(torch.__version__)"
_DEVICE = "import moe_graph.simulator as s, torch; print(torch.ones(2).npu().add(1).cpu().tolist() == [2, 2])"
_TIMEOUT = 300  # seconds; the first start compiles the device's C sources


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        what: what was looked at
        found: what is there
        wrong: whether something does not work because of it
        mend: the command that mends it; "" if it is right, or no command can
    """

    what: str
    found: str
    wrong: bool = False
    mend: str = ""


def main(argv: Sequence[str]) -> int:
    """Print the report; 0 if all is well, 1 if something is to be mended."""
    argparse.ArgumentParser(prog="moe-graph doctor", description=__doc__.partition("\n\n")[0]).parse_args(argv)
    findings = look()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{'!!' if finding.wrong else 'ok'}  {finding.what:{width}}  {finding.found}")
    wrong = [finding for finding in findings if finding.wrong]
    if not wrong:
        print("\nall is well")
        return 0
    mend = next((finding.mend for finding in wrong if finding.mend), "")
    print(f"\nto fix it: {mend}" if mend else "\nno command fixes it: see the lines marked with !!")
    return 1


def look() -> list[Finding]:
    """All findings, in the order in which they are to be mended: what comes later needs what comes before."""
    npu = cann.is_present()
    findings = [_python(), _platform(), _torch(), _torch_npu(), _pair(), *_packages()]
    home = os.environ.get("ASCEND_HOME_PATH", "")
    findings.append(Finding("CANN", f"is here{home and f' ({home})'}" if npu else "none: the device is simulated"))
    if not npu:
        findings += [_compiler(), _cxx_compiler(), _cache()]
    if any(finding.wrong for finding in findings):
        return findings
    if npu:
        findings.append(_tried("import moe_graph", "import moe_graph", ""))
    else:
        findings.append(_tried("simulated device", _DEVICE, ""))
        mend = "moe-graph activate   (or python -m moe_graph run SCRIPT, which needs no switch)"
        findings.append(_tried("plain import torch", _TORCH, mend))
    return findings


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _python() -> Finding:
    return Finding("Python", f"{platform.python_version()} at {sys.prefix}", sys.version_info < (3, 9))


def _platform() -> Finding:
    system, machine = platform.system(), platform.machine()
    if system != "Linux":
        return Finding(
            "platform", f"{system} {machine}: torch_npu has wheels for Linux only; use a Linux container", True
        )
    if machine not in ("x86_64", "aarch64"):
        return Finding("platform", f"{system} {machine}: torch_npu has wheels for x86_64 and aarch64 only", True)
    return Finding("platform", f"{system} {machine}{'' if machine == 'x86_64' else ': not run there yet'}")


def _torch() -> Finding:
    found = _version("torch")
    if not found:
        return Finding("torch", "not installed", True, _install())
    return Finding("torch", found)


def _torch_npu() -> Finding:
    found = _version("torch_npu")
    if not found:
        return Finding("torch_npu", "not installed", True, _install())
    return Finding("torch_npu", found)


def _install() -> str:
    return "pip install 'moe_graph[simulator]'"


def _pair() -> Finding:
    """torch and torch_npu are made for each other: torch_npu says for which torch."""
    torch, npu = _version("torch"), _version("torch_npu")
    wanted = _torch_of_torch_npu()
    if not (torch and npu and wanted):
        return Finding(
            "the pair", "torch_npu does not say which torch it is built for" if torch and npu else "not both are here"
        )
    release = re.match(r"[\d.]*\d", wanted)
    assert release is not None
    if torch.split("+")[0] == release[0]:
        return Finding("the pair", f"torch_npu {npu} is built for torch {release[0]}")
    mend = f"pip install torch=={release[0]} torch_npu=={npu}"
    return Finding(
        "the pair", f"torch_npu {npu} is built for torch {release[0]}, and torch {torch} is here", True, mend
    )


def _torch_of_torch_npu() -> str:
    for line in importlib.metadata.requires("torch_npu") or () if _version("torch_npu") else ():
        match = re.match(r"torch\s*\(?==\s*([\d][^\s;)]*)", line)
        if match:
            return match[1]
    return ""


def _packages() -> list[Finding]:
    missing = [package for package in NEEDED.values() if not _version(package)]
    if not missing:
        return [Finding("other packages", ", ".join(f"{name} {_version(name)}" for name in NEEDED.values()))]
    return [Finding("other packages", f"missing: {', '.join(missing)}", True, f"pip install {' '.join(missing)}")]


def _compiler() -> Finding:
    found = machine.c_compiler()
    if found is None:
        return Finding("C compiler", "none of $CC, cc, gcc, clang, ziglang", True, "pip install ziglang")
    return Finding("C compiler", " ".join(found))


def _cxx_compiler() -> Finding:
    """No fault where it is missing: results are the same."""
    found = machine.cxx_compiler()
    return Finding("C++ compiler", "none: eager operators take longer" if found is None else " ".join(found))


def _cache() -> Finding:
    folder = machine.cache_folder()
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not os.access(there, os.W_OK):
        return Finding("cache", f"{folder}: {there} cannot be written", True, 'export MOE_GRAPH_CACHE="$(mktemp -d)"')
    return Finding("cache", f"{folder}{'' if folder.exists() else ' (will be made)'}")


def _tried(what: str, code: str, mend: str) -> Finding:
    """What a process of its own says to the code: its last line."""
    try:
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        return Finding(what, f"did not end within {_TIMEOUT} s", True, mend)
    if run.returncode == 0:
        switched = "; the switch is on" if what == "plain import torch" and switch.pth_file().exists() else ""
        return Finding(what, f"works{switched}")
    lines = [line for line in run.stderr.splitlines() if line.strip()] or [f"ended with {run.returncode}"]
    telling = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[-1])
    return Finding(what, telling.strip()[:300], True, mend)
