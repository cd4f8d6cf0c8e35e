"""Which operator of a compiled function is wrong: the FX graph that torchair lowers, interpreted by PyTorch on the CPU, against the
GE graph that it is lowered to, executed by the host engine, tensor by tensor; or against the launches that torchair captures."""

from __future__ import annotations

import contextlib
import importlib
import io
import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from moe_graph.engine.difference import describe_difference
from moe_graph.engine.evaluator import observe
from moe_graph.engine.graph import Node, Plan

if TYPE_CHECKING:
    from rich.table import Table

_LOWERED, _CAPTURED = "max-autotune", "reduce-overhead"
AGREES, DIFFERS, NOT_SEEN, NO_REFERENCE = "agrees", "differs", "not seen", "no reference"


@dataclass(frozen=True)
class FxTensor:
    """A tensor of the FX graph, on both sides.

    Attributes:
        graph: the graph's name
        name: the FX node
        output: which of its outputs ("0")
        target: the operator
        status: "agrees", "differs", "not seen" (no node of the GE graph stands for it: fused away, or not needed),
            "no reference" (the CPU cannot compute it; what the engine computed goes on in its place)
        line: where it stands in the user's program
        ge_node: the GE node that gave the engine's value
        position: index of the first element that differs, None if shape or dtype do
        engine: the engine's value there (or shape and dtype)
        expected: the CPU's
        max_abs_error: the largest absolute error
        count: how many elements differ
        reason: why there is no reference
    """

    graph: str
    name: str
    output: str
    target: str
    status: str
    line: str = ""
    ge_node: str = ""
    position: tuple[int, ...] | None = None
    engine: Any = None
    expected: Any = None
    max_abs_error: float | None = None
    count: int = 0
    reason: str = ""

    def __str__(self) -> str:
        text = f"{self.graph}: FX node {self.name!r} ({self.target}), output {self.output}: {self.status}"
        if self.status == DIFFERS:
            where = "" if self.position is None else f" at {list(self.position)}"
            error = "" if self.max_abs_error is None else f", max abs error {self.max_abs_error:.4g}"
            text += f"{where}: engine {self.engine}, CPU {self.expected} ({self.count} elements differ{error})"
            text += f"\n  computed by {self.ge_node}"
        if self.reason:
            text += f": {self.reason}"
        return text + (f"\n  {self.line}" if self.line else "")


@dataclass(repr=False)
class Report:
    """What was compared.

    Attributes:
        tensors: of all graphs of the function, in the order the FX graphs compute them
    """

    tensors: list[FxTensor] = field(default_factory=list)

    @property
    def first(self) -> FxTensor | None:
        """The first tensor that differs: the operator that computes it is wrong, what reads it differs as a consequence."""
        return next((tensor for tensor in self.tensors if tensor.status == DIFFERS), None)

    @property
    def ok(self) -> bool:
        """Does no tensor differ?"""
        return self.first is None

    def with_status(self, status: str) -> list[FxTensor]:
        """The tensors with this status."""
        return [tensor for tensor in self.tensors if tensor.status == status]

    def table(self) -> Table:
        """A rich table, a row for each tensor."""
        from rich.markup import escape
        from rich.table import Table

        table = Table("FX node", "operator", "status", "first difference", "GE node", "line")
        for tensor in self.tensors:
            difference = f"{tensor.engine} for {tensor.expected}" if tensor.status == DIFFERS else tensor.reason
            where = f"{tensor.name}.{tensor.output}"
            cells = (where, tensor.target, tensor.status, difference, tensor.ge_node, tensor.line)
            table.add_row(*map(escape, cells), style="red" if tensor.status == DIFFERS else None)
        return table

    def __str__(self) -> str:
        counts = ", ".join(
            f"{len(self.with_status(status))} {status}" for status in (AGREES, DIFFERS, NOT_SEEN, NO_REFERENCE)
        )
        head = f"{len(self.tensors)} tensors: {counts}"
        return head if self.first is None else f"{head}\nfirst: {self.first}"

    def __repr__(self) -> str:
        """The same words on one line."""
        return f"<Report of {'; '.join(str(self).splitlines())}>"

    def _repr_html_(self) -> str:
        """The table, for a notebook."""
        from rich.console import Console

        console = Console(record=True, width=160, file=io.StringIO())
        console.print(self.table())
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def compare_graph(
    function: Callable,
    *args: Any,
    dynamic: bool | None = False,
    rtol: float | None = None,
    atol: float | None = None,
    config: Any = None,
) -> Report:
    """Compile `function` for the NPU, run it once on `args`, and compare each FX tensor with PyTorch's result on the CPU.

    It needs the simulated device, and runs as inference (without gradients). What `function` changes in place in an argument, it
    changes in the NPU tensor it is given.

    Args:
        function: a function or module; a module's parameters must be on the NPU.
        args: its arguments; CPU tensors are copied to the NPU.
        dynamic: as in `torch.compile`.
        rtol: relative tolerance; by default that of `torch.testing.assert_close` for the tensor's dtype.
        atol: absolute tolerance; by default as rtol.
        config: a `torchair.CompilerConfig`. In the mode "reduce-overhead" the FX graph is compared with the launches of a replay, matched
            by operator and order; `ge_node` then names the launch. Views are no launches: "not seen".

    Returns:
        Every tensor of the FX graph, with what was found.

    Raises:
        RuntimeError: without the simulated device, or if nothing was compiled.
        ValueError: if `config` is of neither mode.
        GraphError: if the engine cannot load the graph.
        KernelError: if a kernel of the engine fails.
    """
    need_device()
    import torchair

    config = torchair.CompilerConfig() if config is None else config
    if config.mode.value not in (_LOWERED, _CAPTURED):
        raise ValueError(f"config.mode must be 'max-autotune' (a GE graph) or {_CAPTURED!r}, got {config.mode.value!r}")
    report = Report()
    tolerances = (rtol, atol)

    def run(*values: Any) -> Any:
        return function(*values)

    # dynamo keeps what it has compiled by code object: a new one for each comparison, lest an earlier result is reused.
    run.__code__ = run.__code__.replace()
    compiled = torch.compile(run, backend=_backend(torchair, config, report, tolerances), dynamic=dynamic)
    with torch.no_grad():
        compiled(*tree_map(lambda x: x.npu() if isinstance(x, Tensor) and x.device.type == "cpu" else x, args))
    if not report.tensors:
        raise RuntimeError("nothing was compared: torch.compile found no operator to compile in the function")
    return report


def need_device() -> None:
    """Raises RuntimeError where the simulated device does not run."""
    simulator = sys.modules.get("moe_graph.simulator")
    if simulator is None or not simulator.is_active():
        raise RuntimeError("comparing graphs needs the simulated device: import moe_graph.simulator first")


def _backend(torchair: Any, config: Any, report: Report, tolerances: tuple) -> Callable:
    """torchair's backend, whose compiled graphs are compared each time they run."""
    from torchair import npu_fx_compiler

    compiler = watch(torchair.get_compiler(config), config.mode.value, Reference, report, tolerances)

    def backend(graph_module: torch.fx.GraphModule, inputs: list) -> Callable:
        if not hasattr(npu_fx_compiler, "_get_merged_decompositions"):
            raise NotImplementedError("comparing a graph with FX needs the torchair of torch_npu 2.7 or newer")
        decompositions = npu_fx_compiler._get_merged_decompositions(config)
        return npu_fx_compiler._compile_graph_with_aot(graph_module, compiler, inputs, config, decompositions)

    return backend


def watch(compiler: Callable, mode: str, reference: type[Reference], report: Report, tolerances: tuple) -> Callable:
    """torchair's compiler of FX graphs; what it compiles is compared with the reference each time it runs."""

    def compile_and_watch(graph_module: torch.fx.GraphModule, inputs: list) -> Callable:
        compiled = compiler(graph_module, inputs)
        lowered = compiled.runner.fx_graph  # after torchair's own passes over the FX graph

        def call(*arguments: Any) -> Any:
            copies = tree_map(reference.copied, arguments)  # before the graph changes any of them
            seen: _Seen | _SeenLaunches = _Seen() if mode == _LOWERED else _SeenLaunches(lowered)
            with seen.watching():
                outputs = compiled(*arguments)
            reference(lowered, seen, report, tolerances).run(*copies)
            return outputs

        return call

    return compile_and_watch


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value


class _Seen:
    """An observer of the evaluator that keeps a copy of each value by its FX node: {node: {output: (tensor, GE node)}}."""

    def __init__(self) -> None:
        self.graph = ""
        self.values: dict[str, dict[str, tuple[Tensor, Node]]] = {}

    def watching(self) -> contextlib.AbstractContextManager:
        return observe(self, compares_with_fx=True)

    def __call__(self, plan: Plan, values: Mapping[tuple[int, int], Tensor]) -> Callable[[Node, list[Tensor]], None]:
        self.graph = plan.name
        for (index, _), value in values.items():  # an operator may be lowered to a constant, or to nothing
            self._keep(plan.nodes[index], [value])
        return self._keep

    def _keep(self, node: Node, results: list[Tensor]) -> None:
        for described, result in zip(node.outputs, results):
            name, _, rest = described.fx_name.partition("-")
            if name:
                self.values.setdefault(name, {})[rest.rpartition(".OUTPUT.")[2]] = (result.clone(), node)


class _SeenLaunches:
    """The same for the launches of a replay: they come in the order of the FX nodes that they stand for."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        self.graph = ""
        self.values: dict[str, dict[str, tuple[Tensor, str]]] = {}
        self._nodes = [node for node in module.graph.nodes if node.op == "call_function"]
        self._next = 0

    def watching(self) -> contextlib.AbstractContextManager:
        return importlib.import_module("moe_graph.simulator.replays").observed(self)

    def __call__(self, graph: int, launch: str, operator_name: str, results: list[Tensor | None]) -> None:
        self.graph = f"captured graph {graph}"
        for at in range(self._next, len(self._nodes)):
            if str(self._nodes[at].target) == operator_name:
                given = {str(i): (x.clone(), launch) for i, x in enumerate(results) if x is not None}
                self.values[self._nodes[at].name] = given
                self._next = at + 1
                return


class _NoValue:
    """Stands for what the CPU could not compute."""


_MISSING = _NoValue()


_WAITS = "air.wait_tensor.default"
"""Gives its first argument, after its second. torchair gives it no kernel outside of a graph."""


class Reference(torch.fx.Interpreter):
    """Interprets the FX graph on CPU tensors and holds each result against what was seen of it."""

    copied = staticmethod(_to_cpu)
    """What an argument or constant of the graph is here."""

    def __init__(
        self, module: torch.fx.GraphModule, seen: _Seen | _SeenLaunches, report: Report, tolerances: tuple
    ) -> None:
        super().__init__(module)
        self._seen, self._report, self._tolerances = seen, report, tolerances

    def run_node(self, node: torch.fx.Node) -> Any:
        if node.op in ("placeholder", "output", "get_attr"):
            return tree_map(self.copied, super().run_node(node)) if node.op == "get_attr" else super().run_node(node)
        args, kwargs = self.fetch(node)
        reason = ""
        if any(x is _MISSING for x in tree_flatten((args, kwargs))[0]):
            reason = "an input has none"
        else:
            try:
                value = args[0] if str(node.target) == _WAITS else getattr(self, node.op)(node.target, args, kwargs)
            except (
                Exception
            ) as error:  # reported: an operator of the NPU has no kernel on the CPU, and may say so in any way
                reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        if reason:
            return self._no_reference(node, reason)
        if node.target is not operator.getitem:  # its value was held against the engine's as an output of what it reads
            self._compare(node, value)
        return value

    def fetch(self, node: torch.fx.Node) -> tuple[Any, Any]:
        """The arguments of a node."""
        return tree_map(
            lambda x: torch.device("cpu") if isinstance(x, torch.device) else x, self.fetch_args_kwargs_from_env(node)
        )

    def taken(self, seen: Tensor) -> Tensor:
        """The engine's value, to go on with."""
        return seen.clone()

    def difference(self, got: Tensor, expected: Any) -> dict[str, Any]:
        """What differs of a tensor that was seen."""
        return describe_difference(got, expected, *self._tolerances)

    def _compare(self, node: torch.fx.Node, value: Any) -> None:
        for output, expected in _leaves(value):
            if not isinstance(expected, (Tensor, int, float)):
                continue
            got, ge_node = self._seen.values.get(node.name, {}).get(output, (None, None))
            if got is None:
                self._add(node, output, NOT_SEEN)
            else:
                difference = self.difference(got, expected)
                self._add(node, output, DIFFERS if difference else AGREES, ge_node=str(ge_node), **difference)

    def _no_reference(self, node: torch.fx.Node, reason: str) -> Any:
        """The engine's value in place of the reference, so that what follows is still compared."""
        seen = self._seen.values.get(node.name, {})
        described = node.meta.get("val")
        if node.target is not operator.getitem and not _gives_nothing(node.target):
            for output, (_, ge_node) in seen.items() or [("0", (None, ""))]:
                self._add(node, output, NO_REFERENCE, reason=reason, ge_node=str(ge_node))
        if isinstance(described, (tuple, list)):
            return [self.taken(seen[str(at)][0]) if str(at) in seen else _MISSING for at in range(len(described))]
        return self.taken(seen["0"][0]) if "0" in seen and isinstance(described, Tensor) else _MISSING

    def _add(self, node: torch.fx.Node, output: str, status: str, **found: Any) -> None:
        tensor = FxTensor(self._seen.graph, node.name, output, str(node.target), status, _line(node), **found)
        self._report.tensors.append(tensor)


def _gives_nothing(target: Any) -> bool:
    """Is it an operator without results, or whose only one is declared to be None, as torchair's that begin and end a scope?"""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return all(str(result.type) == "NoneType" for result in target._schema.returns)


def _leaves(value: Any, path: tuple = ()) -> list[tuple[str, Any]]:
    """(output as torchair numbers it, value) of an FX node's value."""
    if isinstance(value, Mapping):
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*path, key))]
    if isinstance(value, (tuple, list)):
        return [leaf for at, inner in enumerate(value) for leaf in _leaves(inner, (*path, at))]
    return [(".".join(map(str, path)) or "0", value)]


def _line(node: torch.fx.Node) -> str:
    """The innermost line of the user's program that the node came from, from its stack trace."""
    lines = [line.strip() for line in (node.stack_trace or "").splitlines()]
    at = max((at for at, line in enumerate(lines) if line.startswith("File ")), default=None)
    if at is None:
        return ""
    code = next((line for line in lines[at + 1 :] if line.strip("^~ ")), "")
    return f"{lines[at]}: {code}"
