"""torch's own samples of every operator, compiled by torchair and run on the host engine, against eager PyTorch on the CPU.

    python tests/opinfo_graph.py [--every N] [--first N] [--record] [name ...]

prints the classes and what did not agree; --record puts them into operators_graph.json. At most 4 samples of an operator and dtype, each
with static and with dynamic shapes. A case (operator, dtype, static or dynamic) is of the first class below that one of its samples is in:

engine        the engine lacks or refuses something, or the results differ, and nothing explains it: none of these may be
known         the results differ, and `moe_graph.converters.known` told so when torchair lowered it
not lowered   torch.compile does not trace it, or torchair has no converter for it or refuses it, or nothing is left to lower
agrees        everything else
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import opinfo

# isort: split
import torch
import torchair

from moe_graph.conformance.run import _cause, _first_line, _is_ours
from moe_graph.converters.known import TorchairWarning, forget
from moe_graph.engine import GraphError, KernelError, evaluator

DTYPES = (torch.float32, torch.int64, torch.bfloat16)
ENGINE, KNOWN, NOT_LOWERED, AGREES = "engine", "known", "not lowered", "agrees"
ORDER = (ENGINE, KNOWN, NOT_LOWERED, AGREES)
SAMPLES = 4
RECORD = Path(__file__).with_name("operators_graph.json")


@dataclass(frozen=True)
class Outcome:
    """What became of one operator in one dtype, with static or dynamic shapes. `message` is empty where all samples agree."""

    operator: str
    dtype: str
    shapes: str
    outcome: str
    samples: int
    message: str = ""


def walk(op, dtypes=DTYPES, samples: int = SAMPLES, dynamic=(False, True)) -> list[Outcome]:
    """All dtypes of one operator, static and dynamic."""
    return [
        _case(op, dtype, shapes, samples)
        for dtype in dtypes
        if dtype in op.supported_dtypes("cpu")
        for shapes in dynamic
    ]


def _case(op, dtype, dynamic, limit) -> Outcome:
    found = []
    try:
        for sample in itertools.islice(op.sample_inputs("cpu", dtype), limit):
            outcome = _sample(op, sample, dynamic)
            if outcome:
                found.append(outcome)
    except Exception as error:  # the description of the operator itself fails
        found.append((NOT_LOWERED, f"no sample: {_first_line(error)}"))
    outcome, message = min(found, key=lambda item: ORDER.index(item[0]), default=(NOT_LOWERED, "no sample"))
    label = str(dtype).removeprefix("torch.")
    return Outcome(opinfo.name_of(op), label, "dynamic" if dynamic else "static", outcome, len(found), message)


def _sample(op, sample, dynamic) -> tuple[str, str] | None:
    def on_cpu():
        torch.manual_seed(0)
        copy = opinfo._copied(sample, "cpu")
        if op.name in (
            "sort",
            "argsort",
        ):  # of equal elements either may come first; the device's order is the stable one
            copy.kwargs.setdefault("stable", True)
        return [op(copy.input, *copy.args, **copy.kwargs), []]

    try:
        expected = on_cpu()
    except Exception:
        return None  # no result to compare with
    torch._dynamo.reset()
    forget()
    copy = opinfo._copied(sample, "npu")
    compiled = torch.compile(
        lambda x, args, kwargs: op(x, *args, **kwargs),
        backend=torchair.get_npu_backend(compiler_config=torchair.CompilerConfig()),
        dynamic=dynamic,
        fullgraph=True,
    )
    ran = []

    def watch(plan, values):
        ran.append(plan)
        return lambda node, results: None

    with warnings.catch_warnings(record=True) as told, evaluator.observe(watch):
        warnings.simplefilter("always")
        torch.manual_seed(0)
        try:
            got = compiled(copy.input, copy.args, copy.kwargs)
        except Exception as error:
            cause = _cause(error)
            ours = ran or _is_ours(cause) or isinstance(cause, (GraphError, KernelError))
            return _unless_told(told, ENGINE if ours else NOT_LOWERED, f"{type(cause).__name__}: {_first_line(cause)}")
    if not ran:
        return NOT_LOWERED, "nothing is left to lower"

    def wide():
        torch.manual_seed(0)
        copy = opinfo._widened(sample)
        return [op(copy.input, *copy.args, **copy.kwargs), []]

    try:
        opinfo._compare(op, [_as_on_cpu(got, expected[0]), []], expected, on_cpu, wide)
    except Exception as error:
        return _unless_told(told, ENGINE, f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
    return AGREES, ""


def _as_on_cpu(got, expected):
    """A mean or the like that a device keeps in float32 is a half type on the CPU."""
    wanted = opinfo._flat(expected)
    return [
        g.to(w.dtype) if g.dtype == torch.float32 and w.dtype == torch.bfloat16 else g
        for g, w in zip(opinfo._flat(got), wanted)
    ] + opinfo._flat(got)[len(wanted) :]


def _unless_told(told, outcome: str, message: str) -> tuple[str, str]:
    """What the list of torchair's faults says, if it was told while torchair lowered; else this outcome."""
    entries = [w.message.entry for w in told if issubclass(w.category, TorchairWarning)]
    return (KNOWN, entries[0].what) if entries and outcome == ENGINE else (outcome, message)


def record(outcomes: list[Outcome], samples: int = SAMPLES) -> dict:
    """What operators_graph.json holds: of each dtype and kind of shapes the operators of each class, with the reason of the others, and
    how many samples of an operator were walked at most."""
    classes: dict = {}
    for o in sorted(outcomes, key=lambda o: (o.dtype, o.shapes, o.operator)):
        of_kind = classes.setdefault(f"{o.dtype} {o.shapes}", {AGREES: []})
        if o.outcome == AGREES:
            of_kind[AGREES].append(o.operator)
        else:
            of_kind.setdefault(o.outcome, {})[o.operator] = o.message
    return {"torch": torch.__version__.partition("+")[0], "samples": dict.fromkeys(classes, samples), **classes}


def kinds(recorded: dict) -> list[str]:
    """The dtypes and kinds of shapes of a record, "float32 static"."""
    return sorted(key for key in recorded if key not in ("torch", "samples"))


def samples_of(recorded: dict, kind: str) -> int:
    """How many samples of an operator were walked at most."""
    return recorded["samples"][kind]


def merged(old: dict, new: dict) -> dict:
    """The record with what was walked anew in the place of what it had of the same operators."""
    result = {**old, "torch": new["torch"], "samples": {**old.get("samples", {}), **new["samples"]}}
    for kind in kinds(new):
        walked = {operator for members in new[kind].values() for operator in members}
        kept = {
            outcome: [m for m in members if m not in walked]
            if outcome == AGREES
            else {m: reason for m, reason in members.items() if m not in walked}
            for outcome, members in old.get(kind, {}).items()
        }
        result[kind] = {AGREES: sorted(kept.pop(AGREES, []) + new[kind][AGREES])}
        for outcome in ORDER[:-1]:
            members = {**kept.get(outcome, {}), **new[kind].get(outcome, {})}
            if members:
                result[kind][outcome] = dict(sorted(members.items()))
    return result


def table(recorded: dict) -> list[str]:
    """The record as rows of a Markdown table."""
    heads = (AGREES, NOT_LOWERED, KNOWN, ENGINE)
    rows = [
        "| dtype, shapes | samples | operators | " + " | ".join(heads) + " |",
        "|---|---|---|" + "---|" * len(heads),
    ]
    for kind in kinds(recorded):
        counts = [len(recorded[kind].get(head, ())) for head in heads]
        rows.append(f"| {kind} | {samples_of(recorded, kind)} | {sum(counts)} | " + " | ".join(map(str, counts)) + " |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--static", action="store_true", help="static shapes only")
    parser.add_argument("--dynamic", action="store_true", help="dynamic shapes only")
    parser.add_argument("--dtype", choices=["float32", "int64", "bfloat16"])
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    start, outcomes = time.perf_counter(), []
    dtypes = (getattr(torch, options.dtype),) if options.dtype else DTYPES
    for op in opinfo.operators(options.every, options.first):
        if options.names and not any(name in (op.name, opinfo.name_of(op)) for name in options.names):
            continue
        for outcome in walk(
            op, dtypes, options.samples, (False,) if options.static else (True,) if options.dynamic else (False, True)
        ):
            outcomes.append(outcome)
            if outcome.outcome != AGREES:
                print(
                    f"{outcome.outcome:12}{outcome.operator} {outcome.dtype} {outcome.shapes}: {outcome.message}"[:600],
                    flush=True,
                )
    print("\n".join(table(record(outcomes, options.samples))), f"{time.perf_counter() - start:.0f} s", sep="\n")
    if options.record:
        old = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        RECORD.write_text(json.dumps(merged(old, record(outcomes, options.samples)), indent=1) + "\n")


if __name__ == "__main__":
    main()
