"""Starts the ranks of a program with torch's own launcher, and says what they printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "ep_moe.py"
WORKER = Path(__file__).parent / "worker.py"


def run(script, ranks, *arguments, device, fails=False, timeout=240):
    """The output of `ranks` processes: on the simulated device ("npu", hccl) or on CPU tensors ("cpu", gloo)."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(script), *map(str, arguments)]
    start = ["-m", "moe_graph", "run", "-q", "--devices", str(ranks), "-m"] if device == "npu" else ["-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    if device == "npu":
        del environment["TORCH_DEVICE_BACKEND_AUTOLOAD"]
    result = subprocess.run(
        [sys.executable, *start, *launcher], capture_output=True, text=True, timeout=timeout, env=environment
    )
    assert (result.returncode != 0) == fails, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr
