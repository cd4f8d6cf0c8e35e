"""`activate`, `deactivate`, `env`: a plain `import torch` starts the simulated device.

torch_npu without CANN makes every `import torch` fail (libhccl.so). With the switch on, importing torch starts the simulated device
instead, unchanged: scripts, notebooks, debuggers, pytest, torchrun. `activate` does so for an environment, by a .pth file in its
site-packages; `env` for a shell, by PYTHONPATH. MOE_GRAPH_SIM=0 leaves it off for a process, and where CANN is it is off.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

NAME = "moe_graph_simulator.pth"
VARIABLE = "MOE_GRAPH_SIM"


def main(argv: Sequence[str]) -> int:
    """Run `activate`, `deactivate` or `env`, which argv begins with; 1 if the environment cannot be written."""
    command, *rest = argv
    return {"activate": _activate, "deactivate": _deactivate, "env": _env}[command](rest)


def inherit_folder() -> Path:
    """The folder whose sitecustomize.py starts the device when torch is imported."""
    return Path(__file__).absolute().parents[1] / "simulator" / "inherit"


def pth_file() -> Path:
    """The file that `activate` writes."""
    return Path(sysconfig.get_path("purelib")) / NAME


def _activate(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="moe-graph activate",
        description="Start the simulated device in every Python of this environment that imports torch: scripts, notebooks, pytest, "
        "torchrun. MOE_GRAPH_SIM=0 leaves it off for a process. Off where CANN is.",
    )
    parser.add_argument("--opt-in", action="store_true", help="only in processes with MOE_GRAPH_SIM=1")
    options = parser.parse_args(argv)
    path = pth_file()
    try:
        path.write_text(_pth(options.opt_in), encoding="utf-8")
    except OSError as error:
        print(f'moe-graph: {path}: {error.strerror}; for this shell alone: eval "$(moe-graph env)"', file=sys.stderr)
        return 1
    which = "with MOE_GRAPH_SIM=1 " if options.opt_in else ""
    print(
        f"{path}\nimporting torch {which}starts the simulated device in {sys.prefix}; `moe-graph deactivate` undoes it"
    )
    return 0


def _pth(opt_in: bool) -> str:
    """One line, as Python runs those of .pth files that begin with "import". It does nothing where moe_graph is gone."""
    file = str(inherit_folder() / "sitecustomize.py")
    wanted = f"os.environ.get({VARIABLE!r}, {'0' if opt_in else '1'!r}) not in ('', '0')"
    return f"import os, runpy; {wanted} and os.path.exists({file!r}) and runpy.run_path({file!r}, run_name='moe_graph_switch')\n"


def _deactivate(argv: Sequence[str]) -> int:
    argparse.ArgumentParser(prog="moe-graph deactivate", description="Undo activate.").parse_args(argv)
    path = pth_file()
    try:
        path.unlink()
    except FileNotFoundError:
        print(f"it was not active: there is no {path}")
    except OSError as error:
        print(f"moe-graph: {path}: {error.strerror}", file=sys.stderr)
        return 1
    else:
        print(f"{path} removed")
    return 0


def _env(argv: Sequence[str]) -> int:
    argparse.ArgumentParser(
        prog="moe-graph env",
        description='Print what a shell runs to have the simulated device in all of its Pythons: eval "$(moe-graph env)".',
    ).parse_args(argv)
    folder = str(inherit_folder())
    others = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != folder]
    print(f"export PYTHONPATH={shlex.quote(os.pathsep.join([folder, *others]))}")
    return 0
