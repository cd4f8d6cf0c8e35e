"""No switch of torch_npu's changes a result on the simulated device, before its import or after."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from versions import need_torch

WORKER = Path(__file__).parent / "workers" / "switches.py"


@pytest.mark.parametrize("before", [False, True], ids=["after the import", "before and after"])
def test_switches(before):
    need_torch(2, 7)
    environment = runpy.run_path(str(WORKER), run_name="read")["ENVIRONMENT"] if before else {}
    command = [sys.executable, "-m", "moe_graph", "run", "-q", str(WORKER)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout.splitlines()[-1]) == {}
