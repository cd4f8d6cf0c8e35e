"""What `import moe_graph` takes after `import torch`: processor time of fresh processes, with compiled bytecode as an installation has it.

python benchmarks/import_time.py [--quick]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import measure

_CODE = "import time, torch; t = time.process_time(); import moe_graph; print(time.process_time() - t)"


def rows() -> Iterator[measure.Row]:
    """One row, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-c", _CODE]
        taken = [float(subprocess.check_output(command, env=environment)) for _ in range(1 + measure.rounds() // 3)]
    yield measure.Row("import moe_graph after torch", statistics.median(taken[1:]) * 1e3, "ms", 40.0)


if __name__ == "__main__":
    measure.main("import of moe_graph", rows)
