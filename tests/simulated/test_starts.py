"""No crash at a start or at exit, however often the device is started."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

PROGRAM = """
import moe_graph.simulator, torch
counts = torch.tensor([[2, 0, 3], [1, 4, 0]], dtype=torch.int32).npu()
tokens = torch.ones(10, 4).half().npu()
print(torch.ops.npu.npu_moe_re_routing(tokens, counts)[3].tolist(), (counts + 1).sum().item())
graph = torch.npu.NPUGraph()  # alive when the process ends
with torch.npu.graph(graph):
    total = torch.ops.npu.npu_moe_re_routing(tokens, counts)[3].sum()
graph.replay()
print(total.item())
"""


@pytest.mark.slow
def test_two_hundred_starts():
    def start(_):
        return subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(start, range(200)))
    wrong = [(result.returncode, result.stdout, result.stderr[-500:]) for result in results if result.returncode]
    assert not wrong, wrong[:3]
    assert {result.stdout for result in results} == {"[3, 4, 3] 16\n10\n"}
