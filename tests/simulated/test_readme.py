"""The snippets of README and docs for an NPU run on the simulated device, started as the README says."""

import subprocess
import sys

import pytest

import readme

SNIPPETS = readme.snippets(on_device=True)


@pytest.mark.parametrize("code", SNIPPETS.values(), ids=SNIPPETS)
def test_snippet(code, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(code)
    command = [sys.executable] if "import moe_graph.simulator" in code else [sys.executable, "-m", "moe_graph", "run"]
    result = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    if "re_routing" in code:
        assert "[0, 1, 5, 6, 7, 8, 9, 2, 3, 4]" in result.stdout.replace("\n", "").replace("       ", ""), result.stdout
