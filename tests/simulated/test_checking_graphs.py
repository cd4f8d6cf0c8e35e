"""`inspect --check` on graphs of torchair's declared cases and of the examples: no error, and faults that are put into them are found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import graph_faults
import pytest

from moe_graph import testing
from moe_graph.conformance import cases
from moe_graph.conformance.run import run

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    "graph_mode.py": 1,
    "moe_block.py": 1,
    "moe_model.py --mode ge --steps 2": 1,
    "moe_model.py --mode ge --steps 2 --int8": 1,
    "ep_moe.py --scenario even": 2,
    "ep_moe.py --scenario int8": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_graphs_of_declared_cases(part, capsys):
    graphs = []
    for case in cases.declared_cases()[part::4]:
        found: list = []
        with testing.recorded(found):
            run(case)
        graphs += [(f"{case} {number}", graph.definition) for number, graph in enumerate(found)]
    with capsys.disabled():
        alarms, lost, count = graph_faults.walk_all(graph_faults.once(graphs), each=2)
    assert not alarms
    assert count > 300 and len(lost) <= 0.05 * count


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_graphs_of_the_examples(example, capsys):
    script, *arguments = example.split()
    ranks = EXAMPLES[example]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [
        sys.executable,
        "-m",
        "moe_graph",
        "run",
        "-q",
        "--devices",
        str(ranks),
        *(launcher if ranks > 1 else []),
    ]
    command += [str(ROOT / "tests" / "graph_faults.py"), str(ROOT / "examples" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    with capsys.disabled():
        print(f"\n{example}: {done.stdout[done.stdout.find('in all') :].strip()}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
