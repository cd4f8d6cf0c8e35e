"""Run one declared case through torchair's lowering and the host engine, and compare with eager PyTorch on the CPU.

Outcomes:

passed    the results, and the inputs after the call, are those of eager PyTorch: same structure, shapes and dtypes, values within
          the tolerance of the dtype, NaN where eager has NaN
random    the operator draws random numbers (by torch's tag `nondeterministic_seeded`): shapes, dtypes and distribution hold, see
          `moe_graph.conformance.distribution`
refused   there is nothing to compare: torch refuses the case in eager, or torch.compile or torchair do not lower it. The reason
          is the first line of their message
failed    all else: the lowered graph could not be executed, or gave other results. Where `moe_graph.conformance.known` has found
          torchair's lowering to be the cause, its reason is told first

Tolerances: |got - want| <= tolerance * (1 + the largest finite |want| of the tensor), by the coarsest floating-point dtype of the
result and the arguments, for a lowering may round to it on the way:

float16 2e-3    bfloat16 1.6e-2    float32, complex64 1e-5    float64, complex128 1e-10    integers and bool 0

They are about one unit in the last place of each half type and some hundred of the others: the lowering composes an operator of others, in
another order than eager PyTorch. A mean or the like that a device keeps in float32 may be float32 where the CPU has a half type.
"""

from __future__ import annotations

import contextlib
import enum
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import moe_graph
from moe_graph import engine
from moe_graph.conformance import distribution, known
from moe_graph.conformance.cases import Case
from moe_graph.conformance.lowering import lower
from moe_graph.conformance.reference import eager
from moe_graph.engine import graph, registry

TOLERANCES = {
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.float64: 1e-10,
    torch.complex128: 1e-10,
}
_SEED = 0
_PACKAGE = os.path.dirname(os.path.abspath(moe_graph.__file__))
# Families of kernels that any lowering uses on the way to its main node.
_SUPPORTING = frozenset({"shapes"})


class Status(str, enum.Enum):
    """How a case ended; see the module."""

    PASSED = "passed"
    RANDOM = "random"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass
class Outcome:
    """What became of a case. `ge_types` are those of the lowered graph in its order, empty if there was none."""

    case: Case
    status: Status
    reason: str = ""
    ge_types: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def family(self) -> str:
        """The kernel module of the main node: the last of the graph that is no shape arithmetic; empty if no kernel serves it."""
        families = [kernel.family for kernel in map(registry.get, self.ge_types) if kernel is not None]
        main = [family for family in families if family not in _SUPPORTING] or families
        return main[-1] if main else ""


def run(case: Case) -> Outcome:
    """Run and classify one case. The simulated device must run. Never raises for what the case does."""
    began = time.perf_counter()
    ge_types: list[str] = []
    with warnings.catch_warnings(record=True):  # torchair sets filters of its own, before which this one goes
        warnings.simplefilter("ignore")
        status, reason = _classify(case, ge_types)
    return Outcome(case, status, reason, ge_types, time.perf_counter() - began)


def _classify(case: Case, ge_types: list[str]) -> tuple[Status, str]:
    try:
        args, kwargs = _make(case, "cpu")
        coarsest = _coarsest(args, kwargs)
        result = eager(case.operator, args, kwargs)
    except Exception as error:
        return Status.REFUSED, f"eager: {_first_line(error)}"
    want = _leaves(result, args, kwargs)
    args, kwargs = _make(case, "npu")
    try:
        with _noted(ge_types):
            function = lower(case.operator, args, kwargs, result)
            got = _leaves(function(*args, **kwargs), args, kwargs)
    except Exception as error:
        cause = _cause(error)
        if ge_types or _is_ours(cause):
            return Status.FAILED, _first_line(cause)
        return Status.REFUSED, f"compile: {_first_line(cause)}"
    if not ge_types:
        return Status.REFUSED, "compile: torch computes it while it traces, nothing is left to lower"
    if case.is_random:
        reason = _random_difference(case, function)
        return (Status.RANDOM, "") if reason is None else (Status.FAILED, reason)
    reason = _difference(got, want, coarsest)
    return (Status.PASSED, "") if reason is None else (Status.FAILED, known.explained(case.name, reason))


def _make(case: Case, device: str) -> tuple[list[Any], dict[str, Any]]:
    """The case's arguments, with the same numbers on each device, and the generators as they are after drawing them."""
    torch.manual_seed(_SEED)
    return case.make(device)


def _leaves(result: Any, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Leaves of the results and of the arguments after the call, tensors on the CPU."""
    return [_on_cpu(leaf) for leaf in tree_leaves((result, args, kwargs))]


def _on_cpu(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().cpu().clone()
    return None if isinstance(leaf, torch.device) else leaf


@contextlib.contextmanager
def _noted(ge_types: list[str]) -> Iterator[None]:
    """Note the GE types of each graph that torchair hands to the engine, also of one that the engine then refuses."""
    original = engine.load_model

    def load_model(serialized: bytes, *args: Any, **kwargs: Any) -> engine.Program:
        ge_types.extend(op.type for op in graph.parse(serialized).op)
        return original(serialized, *args, **kwargs)

    engine.load_model = load_model
    try:
        yield
    finally:
        engine.load_model = original


# ---- errors: whose are they? ----


def _cause(error: BaseException) -> BaseException:
    """The error that started it: the engine's own if there is one, else the innermost."""
    while True:
        inner = getattr(error, "inner_exception", None) or error.__cause__
        if inner is None or isinstance(error, (engine.GraphError, engine.KernelError)):
            return error
        error = inner


def _is_ours(error: BaseException) -> bool:
    """Raised by the engine or the simulated device, and not by torch or torchair about a case they do not take."""
    frames = traceback.extract_tb(error.__traceback__)
    from_here = bool(frames) and os.path.abspath(frames[-1].filename).startswith(_PACKAGE + os.sep)
    return from_here or "simulated device" in str(error)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].strip() if text else type(error).__name__


# ---- comparison ----


def _coarsest(*values: Any) -> float:
    """The largest tolerance of the dtypes among these arguments, 0 without floating-point ones."""
    return max((TOLERANCES.get(leaf.dtype, 0) for leaf in tree_leaves(values) if isinstance(leaf, Tensor)), default=0)


def _difference(got: list[Any], want: list[Any], coarsest: float) -> str | None:
    if len(got) != len(want):
        return f"{len(got)} results and arguments, eager has {len(want)}"
    for position, (mine, reference) in enumerate(zip(got, want)):
        if isinstance(reference, Tensor) and isinstance(mine, Tensor):
            reason = _tensor_difference(mine, reference, coarsest)
        else:
            reason = None if type(mine) is type(reference) and mine == reference else f"{mine!r}, eager {reference!r}"
        if reason:
            return f"result {position}: {reason}"
    return None


def _tensor_difference(got: Tensor, want: Tensor, coarsest: float) -> str | None:
    if got.dtype == torch.float32 and want.dtype in (torch.float16, torch.bfloat16):
        got = got.to(want.dtype)
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"{got.dtype} {list(got.shape)}, eager {want.dtype} {list(want.shape)}"
    bound = 0.0
    if want.dtype in TOLERANCES:
        finite = want[torch.isfinite(want)].abs()
        bound = max(TOLERANCES[want.dtype], coarsest) * (1 + (finite.max().item() if finite.numel() else 0))
    try:
        torch.testing.assert_close(got, want, rtol=0, atol=bound, equal_nan=True, check_stride=False)
    except AssertionError as error:
        return " ".join(str(error).split())
    return None


def _random_difference(case: Case, function: Callable[..., Any]) -> str | None:
    got, want = _draws(case, function, "npu"), _draws(case, case.operator, "cpu")
    if len(got[0]) != len(want[0]):
        return f"{len(got[0])} results, eager has {len(want[0])}"
    for position, (mine, reference) in enumerate(zip(zip(*got), zip(*want))):
        reason = distribution.difference(list(mine), list(reference))
        if reason:
            return f"result {position}: {reason}"
    return None


def _draws(case: Case, function: Callable[..., Any], device: str) -> list[list[Tensor]]:
    """The results of many runs on the same inputs."""
    args, kwargs = _make(case, device)
    return [_tensors(function(*args, **kwargs)) for _ in range(distribution.RUNS)]


def _tensors(result: Any) -> list[Tensor]:
    return [_on_cpu(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
