"""Ranks that do not call the same, come late or die: told what is wrong, by rank and line. The walk is tests/collective_mistakes.py."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import types
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_graph.simulator import SimulatorError
from moe_graph.simulator.communication import call, launching, work
from moe_graph.simulator.communication.call import Call
from moe_graph.simulator.communication.place import Place, here

WALK = Path(__file__).parents[1] / "collective_mistakes.py"
COUNTS = re.compile(r"mistakes (\d+), detected (\d+), correct (\d+), false alarms (\d+), hang (\d+), longest")


def told(kind="all_reduce", equal="SUM of 4 float32", line="a.py:1 in f", operator="", **sizes):
    return Call(kind, kind, equal, Place(operator, line), 7, **sizes)


def rows(*calls):
    return torch.stack([each.rows(len(calls))[0] for each in calls])


@pytest.mark.parametrize(
    "other", [told(kind="broadcast"), told(equal="SUM of 5 float32"), told(operator="npu_moe_distribute_dispatch_v2")]
)
def test_ranks_that_call_another_collective_are_named(other):
    sent = rows(told(line="a.py:1 in f"), other, told(line="b.py:2 in g"))
    assert not call.agree(sent)
    assert call.mismatch(sent, [4, 5, 6]) == "rank 5 does not call what the others call"
    assert str(other) in call.texts(sent)[1] and "b.py:2 in g" in call.texts(sent)[2]


def test_lines_may_differ():
    assert call.agree(rows(told(line="a.py:1 in f"), told(line="b.py:2 in g")))


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=3, max_size=3),
    st.integers(0, 2),
    st.integers(0, 2),
)
def test_uneven_sizes_agree_by_pairs(matrix, source, target):
    """matrix[i][j]: what rank i sends to rank j."""

    def everyone():
        return rows(*[told(sent=matrix[i], received=[row[i] for row in matrix]) for i in range(3)])

    assert call.agree(everyone())
    wrong = everyone()
    calls = [told(sent=matrix[i], received=[row[i] for row in matrix]) for i in range(3)]
    expected = list(calls[target].received)
    expected[source] += 1
    calls[target] = told(sent=calls[target].sent, received=expected)
    wrong = rows(*calls)
    assert not call.agree(wrong)
    assert call.mismatch(wrong, [0, 1, 2]) == (
        f"rank {source} sends {matrix[source][target]} bytes to rank {target}, which expects {expected[source]}"
    )


def test_a_long_line_keeps_its_end():
    sent = rows(told(line="/folder" * 200 + "/model.py:12 in f"))
    assert call.texts(sent)[0].endswith("/model.py:12 in f") and call.texts(sent)[0].startswith("all_reduce #7")


def test_the_line_is_the_callers():
    assert here().line.startswith(__file__) and here().operator == ""


@pytest.mark.parametrize("said, seconds", [(None, 60), ("5", 5), ("0.5", 0.5), ("90", 60)])
def test_the_limit_is_the_lesser(monkeypatch, said, seconds):
    monkeypatch.delenv(launching.LIMIT_VARIABLE, raising=False)
    if said is not None:
        monkeypatch.setenv(launching.LIMIT_VARIABLE, said)
    assert launching.limited(timedelta(seconds=60)) == timedelta(seconds=seconds)


@pytest.mark.parametrize("said", ["0", "-1", "soon", "nan"])
def test_a_limit_that_is_none_is_refused(monkeypatch, said):
    monkeypatch.setenv(launching.LIMIT_VARIABLE, said)
    with pytest.raises(
        SimulatorError, match=f"{launching.LIMIT_VARIABLE} must be a number of seconds above 0, got '{said}'"
    ):
        launching.limited(timedelta(seconds=60))


class EndsAfterTheSlice:
    """A work of gloo that is not over when a slice of a wait is, and is over when it is asked next."""

    def __init__(self, error=None):
        self._completed, self._error = False, error

    def is_completed(self):
        return self._completed

    def wait(self, timeout=None):
        if not self._completed:
            self._completed = True
            raise RuntimeError("Operation timed out!")
        if self._error is not None:
            raise self._error
        return True


@pytest.mark.parametrize("error", [None, RuntimeError("Connection closed by peer")])
def test_a_work_that_ends_when_a_slice_of_the_wait_is_over_has_not_failed(error):
    waiting = work.SimulatedWork(told(), [])
    waiting.start([lambda: EndsAfterTheSlice(error)])
    rows = torch.stack([told().rows(1)[0]])
    gloo = types.SimpleNamespace(alltoall_base=lambda output, *_: (output.copy_(rows), EndsAfterTheSlice(error))[1])
    mesh = types.SimpleNamespace(gloo=gloo, order=None)
    meeting = launching.Meeting(types.SimpleNamespace(size=lambda: 1), mesh, types.SimpleNamespace(call=told()), None)
    if error is None:
        assert waiting.wait() and meeting.hold(float("inf"))
        return
    with pytest.raises(RuntimeError, match="closed by peer"):
        waiting.wait()
    with pytest.raises(RuntimeError, match="closed by peer"):
        meeting.hold(float("inf"))


def walk(*arguments, timeout):
    command = [sys.executable, "-m", "moe_graph", "run", "-q", "--devices", "3", str(WALK), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    found = COUNTS.search(done.stdout)
    assert found, done.stdout[-3000:] + done.stderr[-3000:]
    mistakes, detected, correct, alarms, hang = map(int, found.groups())
    assert (detected, alarms, hang) == (mistakes, 0, 0), done.stdout[-6000:]
    return mistakes, correct


def test_a_slice_of_the_mistakes():
    assert walk("--every", "43", "--limit", "3", timeout=200) == (4, 1)


@pytest.mark.slow
@pytest.mark.parametrize("mode, limit", [("eager", 4), ("captured", 4), ("graph", 20)])
def test_every_mistake(mode, limit):
    mistakes, correct = walk("--mode", mode, "--limit", str(limit), timeout=3600)
    assert mistakes > (40 if mode == "graph" else 100) and correct >= 4


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_during_compilation_ends_the_process_in_a_line(tmp_path, number):
    script = tmp_path / "compiles.py"
    script.write_text(
        textwrap.dedent(f"""
            import os, time, torch, torch_npu, torchair

            def backend(graph, inputs):
                os.kill(os.getpid(), {int(number)})
                time.sleep(30)

            torch.compile(lambda x: x + 1, backend=backend)(torch.ones(1))
        """)
    )
    command = [sys.executable, "-m", "moe_graph", "run", "-q", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "RANK": "3"})
    assert done.returncode == -number
    assert f"rank 3 was ended by {number.name} from outside; look for a rank that failed before" in done.stderr
    assert "Traceback" not in done.stderr
