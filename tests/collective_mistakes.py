"""Deliberate mistakes in a correct program of collectives, generated: each must end in an error, in time, that says whose and where.

    python -m moe_graph run -q --devices 3 tests/collective_mistakes.py [--mode eager|captured|graph] [--every N] [--limit SECONDS]

The program has a collective a line, and a copy for each rank (program0.py, ...). One rank's copy is changed: at each line in turn the
collective is dropped, repeated, swapped with a later one, given another size, another dtype, another group; the rank dies there, by an
exception or killed, or sleeps for longer than the limit. A mistake is detected if some rank fails and the ranks' errors name the rank
that is wrong, an operator and a line of the program; it hangs if a process has not ended a while after the limit. Correct programs are
run too, with ranks that are slow and with branches: an error there is a false alarm. Prints what was not detected, then the figures.

`captured`: the program's launches are captured, and fail in a replay. `graph`: a program of fewer collectives is compiled by torchair.
"""

from __future__ import annotations

import argparse
import atexit
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch_npu  # noqa: F401

RANKS = 3
SLACK = 25.0  # seconds beyond the limit, on a machine with more processes than cores, after which a process hangs


@dataclass(frozen=True)
class Step:
    """One line of the program: `text` with its fields filled; `texts` by rank where the ranks' differ."""

    name: str
    text: str = ""
    n: int = 4
    d: str = "float32"
    g: str = "W"
    texts: tuple[tuple[int, str], ...] = ()

    def ranks(self) -> tuple[int, ...]:
        """Who has this line."""
        if self.texts:
            return tuple(rank for rank, _ in self.texts)
        return {"P": (0, 1), "Q": (1, 2)}.get(self.g, tuple(range(RANKS)))

    def line(self, rank: int) -> str:
        """The rank's line."""
        if self.texts:
            text = dict(self.texts).get(rank, "pass")
        else:
            text = self.text if rank in self.ranks() else "pass"
        return text.format(n=self.n, d=f"torch.{self.d}", g=self.g)


TOKENS = "x({n} * 64, {d}).view({n}, 64)"
EAGER = [
    Step("all_reduce", "dist.all_reduce(x({n}, {d}), group={g})"),
    Step("broadcast", "dist.broadcast(x({n}, {d}), 1, group={g})", d="bfloat16"),
    Step("all_gather", "dist.all_gather([x({n}, {d}) for _ in range({g}.size())], x({n}, {d}), group={g})"),
    Step("recv from 0|send to 1", texts=((0, "dist.send(x({n}, {d}), 1)"), (1, "dist.recv(x({n}, {d}), 0)")), n=6),
    Step("all_reduce", "dist.all_reduce(x({n}, {d}), dist.ReduceOp.MAX, group={g})", d="int32", n=5),
    Step("all_gather_into_tensor", "dist.all_gather_into_tensor(x({n} * {g}.size(), {d}), x({n}, {d}), group={g})"),
    Step("all_reduce", "dist.all_reduce(x({n}, {d}), group={g})", g="P"),
    Step("reduce_scatter_tensor", "dist.reduce_scatter_tensor(x({n}, {d}), x({n} * {g}.size(), {d}), group={g})"),
    Step("all_to_all_single", "dist.all_to_all_single(x({n} * {g}.size(), {d}), x({n} * {g}.size(), {d}), group={g})"),
    Step("barrier", "dist.barrier(group={g})"),
    Step(
        "all_to_all_single",  # uneven
        "dist.all_to_all_single(x(sum(to(s, R) + {n} for s in range(3)), {d}), x(sum(to(R, s) + {n} for s in range(3)), {d}), "
        "[to(s, R) + {n} for s in range(3)], [to(R, s) + {n} for s in range(3)], group={g})",
    ),
    Step("reduce", "dist.reduce(x({n}, {d}), 2, group={g})"),
    Step(
        "recv from|send to",
        "[w.wait() for w in dist.batch_isend_irecv([dist.P2POp(dist.isend, x({n}, {d}), (R + 1) % 3, {g}), "
        "dist.P2POp(dist.irecv, x({n}, {d}), (R - 1) % 3, {g})])]",
    ),
    Step("all_gather", "dist.all_gather([x(r + {n}, {d}) for r in range(3)], x(R + {n}, {d}), group={g})"),  # uneven
    Step("gather", "dist.gather(x({n}, {d}), [x({n}, {d}) for _ in range(3)] if R == 0 else None, 0, group={g})"),
    Step(
        "npu_mm_all_reduce_base",
        f"torch_npu.npu_mm_all_reduce_base({TOKENS}, x(64 * 8, {{d}}).view(64, 8), name({{g}}))",
        d="float16",
    ),
    Step("broadcast", "dist.broadcast(x({n}, {d}), 1, group={g}, async_op=True).wait()", g="Q", d="int64"),
    Step(
        "npu_moe_distribute_dispatch_v2",
        "torch_npu.npu_moe_distribute_dispatch_v2(x({n} * 64, {d}).view(-1, 64), experts(), name({g}), 3, R, 6)",
        d="bfloat16",
        n=2,
    ),
    Step("scatter", "dist.scatter(x({n}, {d}), [x({n}, {d}) for _ in range(3)] if R == 1 else None, 1, group={g})"),
    Step("all_reduce", "dist.all_reduce(x({n}, {d}), group={g}, async_op=True).wait()", n=7),
]
GRAPH = [
    Step("all_reduce", "o = y({n}, {d}); dist.all_reduce(o, group={g}); out.append(o)"),
    Step(
        "all_gather", "o = y({n} * 3, {d}); dist.all_gather_into_tensor(o, y({n}, {d}), group={g}); out.append(o)", n=5
    ),
    Step("reduce_scatter", "o = y({n}, {d}); dist.reduce_scatter_tensor(o, y({n} * 3, {d}), group={g}); out.append(o)"),
    Step("all_to_all", "o = y({n} * 3, {d}); dist.all_to_all_single(o, y({n} * 3, {d}), group={g}); out.append(o)"),
    Step("broadcast", "o = y({n}, {d}); dist.broadcast(o, 1, group={g}); out.append(o)"),
    Step(
        "all_reduce", "o = y({n}, {d}); dist.all_reduce(o, dist.ReduceOp.MAX, group={g}); out.append(o)", n=3, d="int32"
    ),
]
ANOTHER_DTYPE = {
    "float32": "int32",
    "int32": "float32",
    "bfloat16": "float16",
    "float16": "bfloat16",
    "int64": "float64",
}
ANOTHER_GROUP = {"W": "V", "P": "W", "Q": "V"}
UNSIZED = (
    "barrier",
    "npu_moe_distribute_dispatch_v2",
)  # tokens of dispatch have one number, and experts their own size

UNCAPTURED = (
    "barrier",
    "gather",
    "scatter",
    "npu_moe_distribute_dispatch_v2",
)  # torch_npu's read values, or make inputs on the host


class Case(NamedTuple):
    """`lines` of each rank; `rank` is wrong, at `step`; None: a correct program."""

    name: str
    lines: list[list[str]]
    rank: int | None = None
    step: Step | None = None


def cases(steps: list[Step], limit: float, mode: str) -> list[Case]:
    """Every mistake, and the correct programs."""
    right = [[step.line(rank) for step in steps] for rank in range(RANKS)]
    made = [Case("correct", right)]
    for rank in range(RANKS):
        slow = [
            f"time.sleep({limit / 3}); {line}" if index % 9 == 4 + rank else line
            for index, line in enumerate(right[rank])
        ]
        slow = [*right[rank], "# slow"] if mode == "graph" else slow
        made.append(Case(f"correct: rank {rank} is slow", [slow if r == rank else right[r] for r in range(RANKS)]))
    if mode != "graph":
        branches = [
            [f"if R == {rank}: {line}" if index % 2 else line for index, line in enumerate(lines)]
            for rank, lines in enumerate(right)
        ]
        made.append(Case("correct: each rank in a branch of its own", branches))
    for index, step in enumerate(steps):
        rank = step.ranks()[index % len(step.ranks())]
        own = right[rank]
        changed = {
            "dropped": [*own[:index], "pass", *own[index + 1 :]],
            "repeated": [*own[:index], f"{own[index]}; {own[index]}", *own[index + 1 :]],
            "died": [*own[:index], f"raise ValueError('step {index}')", *own[index + 1 :]],
            "killed": [*own[:index], "os.kill(os.getpid(), 9)", *own[index + 1 :]],
            "slept": [*own[:index], f"time.sleep({limit * 3}); {own[index]}", *own[index + 1 :]],
        }
        later = next(
            (i for i in range(index + 1, len(steps)) if rank in steps[i].ranks() and own[i] != own[index]), None
        )
        if later is not None:
            swapped = list(own)
            swapped[index], swapped[later] = own[later], own[index]
            changed["reordered"] = swapped
        others = {}
        if step.name not in UNSIZED:
            others["resized"] = replace(step, n=step.n + 1)
        if step.name != "barrier":
            others["retyped"] = replace(step, d=ANOTHER_DTYPE[step.d])
        if not step.texts:
            others["moved"] = replace(step, g=ANOTHER_GROUP[step.g])
        for name, other in others.items():
            changed[name] = [*own[:index], other.line(rank), *own[index + 1 :]]
        for name, lines in changed.items():
            if mode == "graph" and name in ("died", "killed", "slept"):
                lines = [*own, "# " + name]  # what is compiled is the program's; the rank fails between two calls of it
            every = [lines if r == rank else right[r] for r in range(RANKS)]
            made.append(Case(f"{step.name} {name} at line {index + 1} of rank {rank}", every, rank, step))
    return made


# ---- one rank, in a process of its own ----


def program(lines: list[str], mode: str, limit: float) -> str:
    """The text of a rank's program: the collectives stand in its lines from 1 on."""
    if mode == "eager":
        return "\n".join(lines)
    if mode == "captured":
        first = "graph = torch.npu.NPUGraph()\nwith torch.npu.graph(graph):\n"
        return first + "\n".join(f"    {line}" for line in lines) + "\ngraph.replay()\ntorch.npu.synchronize()\n"
    between = {
        "# died": "raise ValueError('between two calls')",
        "# killed": "os.kill(os.getpid(), 9)",
        "# slept": f"time.sleep({limit * 3})",
        "# slow": f"time.sleep({limit / 3})",
    }.get(lines[-1], "pass")
    body = "".join(f"    {line}\n" for line in lines if not line.startswith("#"))
    head = "def model(a):\n    y = lambda n, d: (a[:1].to(d) + 1).expand(n).clone()\n    out = []\n"
    call = "c(x(4, torch.float32))\n"
    return f"{head}{body}    return out\nc = compiled(model)\n{call}{between}\n{call}"


def be_rank(rank: int, text: str, file: str, port: int, limit: float) -> None:
    """Run the program as this rank; end as Python does."""
    import torch.distributed as dist

    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(RANKS),
        MOE_GRAPH_SIM_HANG_SECONDS=str(limit),
    )
    code = 0
    try:
        torch.npu.set_device(rank)
        dist.init_process_group("hccl")
        groups = {
            "W": dist.group.WORLD,
            "P": dist.new_group([0, 1]),
            "Q": dist.new_group([1, 2]),
            "V": dist.new_group([0, 1, 2]),
        }

        def compiled(function):
            import torchair

            torchair.patch_for_hcom()
            backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
            return torch.compile(function, backend=backend, dynamic=False, fullgraph=True)

        names = {
            **groups,
            "dist": dist,
            "torch": torch,
            "torch_npu": torch_npu,
            "os": os,
            "time": time,
            "R": rank,
            "to": lambda sender, receiver: (sender + 2 * receiver) % 3,
            "x": lambda n, d: torch.ones(n, dtype=d, device="npu"),
            "experts": lambda: torch.tensor([[0, 3], [2, 5]], dtype=torch.int32).npu(),
            "name": lambda group: group._get_backend(torch.device("npu")).get_hccl_comm_name(rank),
            "compiled": compiled,
        }
        Path(file).write_text(text)
        exec(compile(text, file, "exec"), names)
        dist.destroy_process_group()
        print("done", flush=True)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code)


def run(case: Case, mode: str, limit: float) -> tuple[list[int | None], list[str], float]:
    """(exit codes by rank, None for one that hangs; what they wrote; seconds)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp()
    try:
        start = time.monotonic()
        children = []
        for rank in range(RANKS):
            log = Path(folder, f"{rank}.log")
            log.touch()
            child = os.fork()
            if not child:
                descriptor = os.open(log, os.O_WRONLY)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                be_rank(rank, program(case.lines[rank], mode, limit), f"{folder}/program{rank}.py", port, limit)
            children.append(child)
        codes: list[int | None] = [None] * RANKS
        while None in codes and time.monotonic() - start < limit * 4 + SLACK:
            for rank, child in enumerate(children):
                if codes[rank] is None:
                    ended, status = os.waitpid(child, os.WNOHANG)
                    codes[rank] = os.waitstatus_to_exitcode(status) if ended else None
            time.sleep(0.02)
        took = time.monotonic() - start
        for rank, child in enumerate(children):
            if codes[rank] is None:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        return codes, [Path(folder, f"{rank}.log").read_text() for rank in range(RANKS)], took
    finally:
        shutil.rmtree(folder)


def verdict(case: Case, codes: list[int | None], texts: list[str]) -> str:
    """ "" if it ended as it must."""
    if None in codes:
        return f"hangs: ranks {[rank for rank, code in enumerate(codes) if code is None]}"
    if case.rank is None:
        return "" if codes == [0] * RANKS else f"false alarm: exit codes {codes}"
    errors = "".join(
        text[text.find("hccl on the simulated device") :] for text in texts if "hccl on the simulated" in text
    )
    if not errors:
        return f"not detected: exit codes {codes}"
    if not re.search(rf"\brank(s [\d, ]*)? ?{case.rank}\b", errors):
        return "does not name the rank"
    if not re.search(r"program\d\.py:\d+", errors):
        return "does not name a line"
    return ""


def main() -> int:
    """Run the cases; 1 if one did not end as it must."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mode", choices=("eager", "captured", "graph"), default="eager")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th case only")
    parser.add_argument("--limit", type=float, default=4.0, help="seconds a rank waits for the others")
    parser.add_argument("--only", default="", help="cases whose name has this text")
    parser.add_argument("--show", action="store_true", help="what the ranks wrote")
    options = parser.parse_args()
    steps = {"eager": EAGER, "captured": [step for step in EAGER if step.name not in UNCAPTURED], "graph": GRAPH}[
        options.mode
    ]
    chosen = [case for case in cases(steps, options.limit, options.mode) if options.only in case.name][:: options.every]
    if options.mode == "graph":
        import torchair  # noqa: F401  once, not in each rank

        torch.compile(lambda a: a + 1, backend="eager")(torch.ones(1))
    counts = {"mistakes": 0, "detected": 0, "correct": 0, "false alarms": 0, "hang": 0}
    longest = 0.0
    for case in chosen:
        codes, texts, took = run(case, options.mode, options.limit)
        wrong = verdict(case, codes, texts)
        counts["correct" if case.rank is None else "mistakes"] += 1
        counts["detected"] += case.rank is not None and not wrong
        counts["false alarms"] += case.rank is None and bool(wrong)
        counts["hang"] += wrong.startswith("hangs")
        longest = max(longest, took if case.rank is not None else 0.0)
        if wrong or options.show:
            print(f"{case.name}: {wrong or 'as it must'} ({took:.1f} s)", flush=True)
            for rank, text in enumerate(texts):
                print("\n".join(f"  [{rank}] {line}" for line in text.splitlines()), flush=True)
    print(
        f"{options.mode}: "
        + ", ".join(f"{name} {count}" for name, count in counts.items())
        + f", longest {longest:.1f} s",
        flush=True,
    )
    return int(counts["detected"] < counts["mistakes"] or counts["false alarms"] > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:
        traceback.print_exc()
        sys.exit(2)
