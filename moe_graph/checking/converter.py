"""Is a converter right? What `torch.library.opcheck` is for an operator, `check_converter` is for its lowering to GE.

operator     torch.library.opcheck on NPU tensors        fake        shapes and dtypes of the fake implementation, against eager
static       a graph of each call, and what it gives     dynamic     one graph for all calls that differ in sizes alone
nodes        against the definitions of their GE types   arguments   every argument is given once, and every tensor is read
host         no tensor of the graph is on the host       captured    the operator under a capture (reduce-overhead)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Optional

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from moe_graph import testing
from moe_graph.checking.finding import ERROR
from moe_graph.checking.graph import check_graph
from moe_graph.checking.report import FAILED, LEFT_OUT, PASSED, ConverterReport, Row
from moe_graph.checking.samples import OpOverload, Sample, as_samples, never_given
from moe_graph.checking.shapes import check_shapes
from moe_graph.dumps.reading_definition import from_definition
from moe_graph.planning import lowering

_FIRST_LINE = 400  # characters of an error that are shown
# What a call must give: its results and its arguments after it.
_Wanted = Callable[[Sample], list[Any]]
_Tolerances = tuple[Optional[float], Optional[float]]


def check_converter(
    operator: Any,
    samples: Iterable[Any],
    *,
    rtol: float | None = None,
    atol: float | None = None,
    captured: bool = True,
    opcheck: bool = True,
    reference: Callable[..., Any] | None = None,
) -> ConverterReport:
    """Check an operator's fake implementation and converter with these calls, on the simulated device or an NPU.

    Give it samples of every dtype and mode, two of a form that differ in sizes alone (one graph must serve both), and every argument once
    with another value than its default. The reference is the operator itself in eager mode, on NPU tensors, if none is given.

    Args:
        operator: an overload (`torch.ops.my_ops.scale_rows.default`), or an operator of one overload.
        samples: `Sample(args, kwargs)`, or a tuple of positional arguments; tensors of the CPU.
        rtol: relative tolerance of the graphs' results; by default that of `torch.testing.assert_close` for the dtype.
        atol: absolute tolerance; by default as rtol.
        captured: check it under a capture, too.
        opcheck: run `torch.library.opcheck`, too.
        reference: called as the operator, with CPU tensors, where eager mode does not serve the samples; None in place of an output whose
            values the operator leaves open.

    Raises:
        RuntimeError: without an NPU or the simulated device.
        TypeError, ValueError: for samples that are none, or an operator with several overloads.
    """
    overload = _overload(operator)
    calls = as_samples(samples)
    wanted = partial(_called, overload, "npu") if reference is None else partial(_called, reference, "cpu")
    check = _Check(overload, calls, wanted, (rtol, atol))
    testing.need_npu()
    for sample in calls if opcheck else ():
        check.row("operator", sample, partial(_opcheck, overload, sample))
    for sample in calls:
        check.row("fake", sample, partial(_fake, overload, sample, reference))
    for sample in calls:
        check.lowered("static", [sample], dynamic=False)
    forms: dict[str, list[Sample]] = {}
    for sample in calls:
        forms.setdefault(sample.form, []).append(sample)
    several = [same for same in forms.values() if len({_sizes(sample) for sample in same}) > 1]
    for same in several:
        check.lowered("dynamic", same, dynamic=True)
    if not several:
        fault = "no two samples differ in the sizes of their tensors alone: add one, so that a graph is tried with other sizes"
        check.report.rows.append(Row("dynamic", "", FAILED, fault))
    check.arguments()
    for sample in calls if captured else ():
        check.row("captured", sample, partial(_captured, overload, sample, wanted, (rtol, atol)))
    return check.report


class _Check:
    """The report that is being made."""

    def __init__(self, overload: OpOverload, calls: list[Sample], wanted: _Wanted, tolerances: _Tolerances) -> None:
        self.report = ConverterReport(str(overload))
        self._overload = overload
        self._calls = calls
        self._wanted = wanted
        self._tolerances = tolerances

    def row(self, check: str, sample: Sample | str, run: Callable[[], str]) -> bool:
        """One check: `run` returns what is wrong, or raises it."""
        try:
            with warnings.catch_warnings(record=True):  # torchair sets filters of its own, before which this one goes
                warnings.simplefilter("ignore")
                fault = run()
        except Exception as error:
            fault = _first_line(error)
        self.report.rows.append(Row(check, str(sample), FAILED if fault else PASSED, fault))
        return not fault

    def lowered(self, check: str, same: list[Sample], dynamic: bool) -> None:
        """Lower a form, call the graph with each of its samples, and look at the graph."""
        graphs: list[Any] = []
        run = partial(_run, self._overload, same, dynamic, graphs, self._wanted, self._tolerances)
        if not self.row(check, same[0], run):
            if not graphs:
                self.report.rows += [Row(what, str(same[0]), LEFT_OUT) for what in ("nodes", "host", "arguments")]
                return
        definition = graphs[0].definition
        self.row("nodes", same[0], lambda: _nodes(definition))
        self.row("host", same[0], lambda: _host(graphs[0]))
        self.row("arguments", same[0], lambda: _read(definition, len(same[0].tensors)))

    def arguments(self) -> None:
        """Is every argument with a default given once?"""
        missing = never_given(self._overload, self._calls)
        fault = f"no sample gives {', '.join(missing)} another value than the default: add one" if missing else ""
        self.report.rows.append(Row("arguments", "", FAILED if fault else PASSED, fault))


def _overload(operator: Any) -> OpOverload:
    if isinstance(operator, torch._ops.OpOverloadPacket):
        names = operator.overloads()
        if len(names) != 1:
            raise ValueError(f"operator: {operator} has the overloads {', '.join(names)}; name one")
        return getattr(operator, names[0])
    if not isinstance(operator, OpOverload):
        raise TypeError(f"operator must be an operator of torch.ops, got {type(operator).__name__}")
    return operator


def _sizes(sample: Sample) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in sample.tensors)


def _first_line(error: BaseException) -> str:
    """The error in a line; Dynamo wraps what a backend raises."""
    if isinstance(error, torch._dynamo.exc.BackendCompilerFailed):
        error = error.inner_exception
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)}"[:_FIRST_LINE]


def _opcheck(overload: OpOverload, sample: Sample) -> str:
    moved = sample.on("npu")
    torch.library.opcheck(overload, moved.args, moved.kwargs, test_utils=("test_schema", "test_faketensor"))
    return ""


def _fake(overload: OpOverload, sample: Sample, reference: Callable[..., Any] | None) -> str:
    """What the fake implementation says is not what the operator, or the reference, returns."""
    moved = sample.on("npu")
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=False) as mode:
        fake = tree_map(
            lambda value: mode.from_tensor(value) if isinstance(value, Tensor) else value, (moved.args, moved.kwargs)
        )
        said = tree_leaves(overload(*fake[0], **fake[1]))
    who, properties = (
        ("operator", ("shape", "dtype", "device")) if reference is None else ("reference", ("shape", "dtype"))
    )
    called = moved if reference is None else sample.on("cpu")
    returned = tree_leaves((reference or overload)(*called.args, **called.kwargs))
    if len(said) != len(returned):
        return f"the fake implementation returns {len(said)} values, the {who} {len(returned)}"
    for position, (one, other) in enumerate(zip(said, returned)):
        if not isinstance(other, Tensor):
            continue
        for what in properties:
            if getattr(one, what) != getattr(other, what):
                return f"output {position}: the fake implementation says {_plain(one, what)}, the {who} returns {_plain(other, what)}"
    return ""


def _plain(tensor: Tensor, what: str) -> str:
    """ "shape [2, 3]" """
    value = getattr(tensor, what)
    return f"{what} {list(value) if what == 'shape' else value}"


def _called(function: Callable[..., Any], device: str, sample: Sample) -> list[Any]:
    """Results and the arguments after the call, which an operator in place has changed."""
    moved = sample.on(device)
    with torch.no_grad():
        return [*tree_leaves(function(*moved.args, **moved.kwargs)), *moved.tensors]


def _sizes_apart() -> AbstractContextManager[Any]:
    """Inside, sizes that happen to be equal in the first call are symbols of their own."""
    config: Any = torch.fx.experimental._config
    return config.patch(use_duck_shape=False) if hasattr(config, "use_duck_shape") else nullcontext()


def _compiled(overload: OpOverload, sample: Sample, dynamic: bool, mode: str) -> Callable[[Sample], list[Any]]:
    """The call of one form, compiled: what its tensors are changes, all else is of the graph."""
    compiled = lowering.compiled(sample.call_with_tensors(overload), dynamic=dynamic, mode=mode)

    def run(other: Sample) -> list[Any]:
        moved = other.on("npu")
        # Numbers are the call's own, also in a dynamic graph: sizes alone are symbols, and equal ones of the first call are two.
        with torch.no_grad(), torch._dynamo.config.patch(specialize_int=True, specialize_float=True), _sizes_apart():
            return [*tree_leaves(compiled(*moved.tensors)), *moved.tensors]

    return run


def _run(
    overload: OpOverload,
    same: list[Sample],
    dynamic: bool,
    graphs: list[Any],
    wanted: _Wanted,
    tolerances: _Tolerances,
) -> str:
    run = _compiled(overload, same[0], dynamic, "max-autotune")
    with testing.recorded(graphs):
        for sample in same:
            difference = _difference(run(sample), wanted(sample), tolerances)
            if difference:
                return f"{difference}, called with {sample}" if sample is not same[0] else difference
    if len(graphs) != 1:
        return (
            f"{len(graphs)} graphs for {len(same)} calls: the converter, or the fake implementation, makes a size a constant"
            if graphs
            else "nothing was lowered"
        )
    return ""


def _difference(got: list[Any], want: list[Any], tolerances: _Tolerances) -> str:
    if len(got) != len(want):
        return f"the graph returns {len(got)} tensors, eager {len(want)} (changed arguments included)"
    for position, (one, other) in enumerate(zip(got, want)):
        if not isinstance(other, Tensor):
            continue
        try:
            torch.testing.assert_close(one.cpu(), other.cpu(), rtol=tolerances[0], atol=tolerances[1], equal_nan=True)
        except AssertionError as error:
            return f"output {position} is not what the operator returns in eager mode: {' '.join(str(error).split())}"[
                :_FIRST_LINE
            ]
    return ""


def _nodes(definition: Any) -> str:
    """The first error of the graph's nodes against their definitions, or of the shapes that they describe."""
    found = check_graph(from_definition(definition)) + check_shapes(definition)
    errors = [finding for finding in found if finding.severity == ERROR]
    return f"{errors[0].node}: {errors[0].text}" if errors else ""


def _host(graph: Any) -> str:
    names = graph.host_tensors
    return f"{', '.join(names)}: on the host, for which a device waits in every call" if names else ""


def _read(definition: Any, count: int) -> str:
    """Is every tensor of the call read by a node?"""
    read = {reference.rpartition(":")[0] for op in definition.op for reference in op.input}
    inputs = [op for op in definition.op if op.type in ("Data", "RefData")]
    unread = [op.attr["index"].i for op in inputs if op.name not in read and op.output_desc[0].shape.dim]
    if unread:
        return f"no node reads the tensors {', '.join(map(str, sorted(unread)))} of the call: the converter leaves them out"
    if len(inputs) < count:
        return f"the graph has {len(inputs)} inputs for the call's {count} tensors: the converter leaves some out"
    return ""


def _captured(overload: OpOverload, sample: Sample, wanted: _Wanted, tolerances: _Tolerances) -> str:
    run = _compiled(overload, sample, False, "reduce-overhead")
    run(sample)
    return _difference(run(sample), wanted(sample), tolerances)  # the second call is a replay
