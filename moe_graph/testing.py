"""For the tests of a model repository: lower a module for the NPU and say what its graph must be.

    from moe_graph import testing

    lowered = testing.lower(model, x, counts, dynamic=True)
    testing.assert_nodes(lowered.graph, MoeReRouting=2, Sort=0)
    testing.assert_no_host_tensors(lowered.graph)
    testing.assert_equals_eager(lowered)
    testing.assert_unchanged(lowered.graph, "tests/graphs/block.txt")

The same for the mode that captures (`lower(..., mode="reduce-overhead")`): the graph is then the FX graph whose launches are captured,
and its node types are operators: `assert_nodes(lowered.graph, **{"aten.mm.default": 2})`.

On a machine without an NPU start the tests with `pytest --npu-sim`, which also brings the fixture `npu_lower`.
On an NPU the same tests run against CANN.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from moe_graph.dumps.fx_code import from_fx
from moe_graph.dumps.reading_definition import from_definition as read_graph
from moe_graph.dumps.words import short_counts
from moe_graph.engine import attributes
from moe_graph.engine import graph as ge_graph
from moe_graph.planning import fakes, lowering

# Checks of converters, which stand above this module.
_LAZY = {
    "check_converter": "moe_graph.checking.converter",
    "ConverterCheck": "moe_graph.checking.declared",
    "ConverterReport": "moe_graph.checking.report",
    "Sample": "moe_graph.checking.samples",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


UPDATE = "MOE_GRAPH_UPDATE_GRAPHS"
_RECORD = f"pytest --npu-graphs-update, or {UPDATE}=1, records it"
_INPUTS = ("Data", "RefData")


@dataclass(frozen=True, repr=False)
class Graph:
    """A graph as torchair hands it to GE.

    Attributes:
        definition: its protobuf GraphDef
    """

    definition: Any

    def __repr__(self) -> str:
        """One line: a failing test shows it."""
        return f"<Graph {self.name}: {short_counts(self.node_types)}>"

    def _repr_html_(self) -> str:
        """A notebook shows the picture of a small graph, the line of a large one."""
        return read_graph(self.definition)._repr_html_()

    @property
    def name(self) -> str:
        """The graph's name."""
        return self.definition.name

    @property
    def node_types(self) -> Counter[str]:
        """How many nodes there are of each GE type."""
        return Counter(node.type for node in self.definition.op)

    @property
    def host_inputs(self) -> list[str]:
        """Names of the inputs that are placed on the host. Sizes of a dynamic graph and Python numbers are, by nature."""
        inputs = (node for node in self.definition.op if node.type in _INPUTS)
        return [node.name for node in inputs if node.output_desc[0].device_type == "CPU"]

    @property
    def host_tensors(self) -> list[str]:
        """The host inputs that are tensors, not sizes or numbers."""
        inputs = (node for node in self.definition.op if node.type in _INPUTS)
        scalars = {node.name for node in inputs if not node.output_desc[0].shape.dim}
        return [name for name in self.host_inputs if name not in scalars]

    def text(self) -> str:
        """The graph as text that is the same for equal graphs: a line for each node, in the graph's order.

        Nodes are numbered; attributes that begin with "_" are torchair's notes (file names, stacks) and are left out.
        """
        number = {node.name: position for position, node in enumerate(self.definition.op)}
        return "".join(_line(node, number) + "\n" for node in self.definition.op)


def _line(node: Any, number: dict[str, int]) -> str:
    reads = []
    for reference in node.input:
        name, _, output = reference.rpartition(":")
        place = f"%{number[name]}" if name in number else "-"
        reads.append(
            place if output == "0" or name not in number else f"{place}:{'control' if output == '-1' else output}"
        )
    values = []
    for name in sorted(name for name in node.attr if not name.startswith("_")):
        value = attributes.decode(node.attr[name])
        values.append(f"{name}={_tensor_text(value) if isinstance(value, Tensor) else value!r}")
    outputs = ", ".join(str(described) for described in map(_described, node.output_desc))
    attribute_text = f" {{{', '.join(values)}}}" if values else ""
    return f"%{number[node.name]} = {node.type}({', '.join(reads)}){attribute_text} -> {outputs}"


def _described(descriptor: Any) -> str:
    name = descriptor.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_number[descriptor.dtype].name
    return f"{name.removeprefix('DT_').lower()}{list(descriptor.shape.dim)}"


def _tensor_text(value: Tensor) -> str:
    shown = value.flatten()[:16].tolist()
    return f"{list(value.shape)} {shown}{'...' if value.numel() > 16 else ''}"


@dataclass(frozen=True, repr=False)
class CapturedGraph:
    """A graph as torchair runs it under a capture (mode "reduce-overhead"): each call is a launch, or a view.

    Attributes:
        module: its torch.fx.GraphModule, after torchair's passes
    """

    module: torch.fx.GraphModule

    def __repr__(self) -> str:
        """One line: a failing test shows it."""
        return f"<CapturedGraph {self.name}: {short_counts(self.node_types)}>"

    def _repr_html_(self) -> str:
        """A notebook shows the picture of a small graph, the line of a large one."""
        return from_fx(self.module)._repr_html_()

    @property
    def name(self) -> str:
        """The class name that FX gives the graph."""
        return self.module._get_name()

    @property
    def node_types(self) -> Counter[str]:
        """How many calls there are of each operator, by name with overload: "aten.mm.default"."""
        return Counter(_fx_target(node) for node in self.module.graph.nodes if node.op == "call_function")

    @property
    def host_inputs(self) -> list[str]:
        """Names of the inputs that are on the host: tensors of the CPU, sizes and numbers."""
        return [node.name for node in self._inputs() if not _is_on_device(node.meta.get("val"))]

    @property
    def host_tensors(self) -> list[str]:
        """The host inputs that are tensors."""
        names = set(self.host_inputs)
        return [n.name for n in self._inputs() if n.name in names and isinstance(n.meta.get("val"), Tensor)]

    def text(self) -> str:
        """The graph as text that is the same for equal graphs: a line for each node, numbered, with shapes and dtypes."""
        nodes = list(self.module.graph.nodes)
        number = {node: f"%{position}" for position, node in enumerate(nodes)}
        return "".join(_fx_line(node, number) + "\n" for node in nodes)

    def _inputs(self) -> list[torch.fx.Node]:
        return [node for node in self.module.graph.nodes if node.op == "placeholder"]


def _is_on_device(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type != "cpu"


def _fx_target(node: torch.fx.Node) -> str:
    target = node.target
    return str(target) if isinstance(target, (str, torch._ops.OpOverload)) else getattr(target, "__name__", str(target))


def _fx_line(node: torch.fx.Node, number: dict[torch.fx.Node, str]) -> str:
    arguments = [_fx_value(value, number) for value in node.args]
    arguments += [f"{name}={_fx_value(value, number)}" for name, value in node.kwargs.items()]
    target = node.op if node.op in ("placeholder", "output") else _fx_target(node)
    value = node.meta.get("val")
    shapes = [_fx_shape(one) for one in (value if isinstance(value, (list, tuple)) else [value]) if one is not None]
    return f"{number[node]} = {target}({', '.join(arguments)})" + (f" -> {', '.join(shapes)}" if shapes else "")


def _fx_value(value: Any, number: dict[torch.fx.Node, str]) -> str:
    if isinstance(value, torch.fx.Node):
        return number[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_fx_value(one, number) for one in value)}]"
    return repr(value)


def _fx_shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return str(value)
    return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"


@dataclass(repr=False)
class Lowered:
    """What became of a module: its graphs in the order they were loaded (one, if nothing broke or recompiled), and the outputs.

    Attributes:
        graphs: in the order they were loaded: `Graph`, or `CapturedGraph` of mode "reduce-overhead"
        outputs: of each call, on the CPU; fake tensors if the module or its inputs were described only
        expected: eager PyTorch's on the CPU, for the same calls; none if they were described only
    """

    graphs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    expected: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Lowered: {len(self.outputs)} call{'s' * (len(self.outputs) != 1)}, graphs {self.graphs}>"

    def _repr_html_(self) -> str:
        return "".join(graph._repr_html_() for graph in self.graphs)

    @property
    def graph(self) -> Any:
        """The one graph. Raises AssertionError if there are more, or none."""
        assert_one_graph(self)
        return self.graphs[0]


def lower(
    model: Callable,
    *inputs: Any,
    more_inputs: Sequence[Sequence[Any]] = (),
    dynamic: bool | None = False,
    fullgraph: bool = True,
    config: Any = None,
    mode: str | None = None,
) -> Lowered:
    """Compile a copy of `model` for the NPU with torchair, call it, and keep the graphs it was lowered to.

    Where a parameter or an input has no memory (it is on the device "meta", or a FakeTensor), nothing is allocated and nothing is run: the
    graph is lowered from shapes alone, the outputs are fake, and there is nothing to compare them with.

    Args:
        model: a module or function, on the CPU or described. It is not changed.
        inputs: arguments of the first call; CPU tensors are copied to the NPU.
        more_inputs: arguments of further calls of the same compiled model.
        dynamic: as in `torch.compile`.
        fullgraph: as in `torch.compile`: a graph break is an error of Dynamo.
        config: a `torchair.CompilerConfig` (default: a fresh one).
        mode: "max-autotune" (a graph for GE), or "reduce-overhead" (captured launches); None: the config's.

    Runs as inference.

    Raises:
        RuntimeError: if there is neither an NPU nor the simulated device. What Dynamo, torchair or the engine raise is passed on.
    """
    need_npu()
    calls = [inputs, *more_inputs]
    result = Lowered()
    if fakes.is_described(model, calls):
        found, result.outputs = lowering.lower(
            model, calls, dynamic=dynamic, fullgraph=fullgraph, config=config, mode=mode
        )
        result.graphs = [CapturedGraph(g.module) if g.definition is None else Graph(g.definition) for g in found]
        return result
    with torch.no_grad():
        for call in calls:
            reference, arguments = (
                copy.deepcopy((model, call)) if isinstance(model, torch.nn.Module) else (model, copy.deepcopy(call))
            )
            result.expected.append(reference(*arguments))
        on_npu = copy.deepcopy(model).to("npu") if isinstance(model, torch.nn.Module) else model
        compiled = lowering.compiled(on_npu, dynamic=dynamic, fullgraph=fullgraph, config=config, mode=mode)
        with recorded(result.graphs):
            for call in calls:
                outputs = compiled(*_moved(copy.deepcopy(call), "npu"))
                result.outputs.append(_moved(outputs, "cpu"))
    return result


def _moved(values: Any, device: str) -> Any:
    return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, values)


def need_npu() -> None:
    """Raises RuntimeError where there is neither an NPU nor the simulated device."""
    if not (hasattr(torch, "npu") and torch.npu.is_available()):
        raise RuntimeError(
            "lowering needs an NPU or the simulated device: start pytest with --npu-sim, "
            "or import moe_graph.simulator first"
        )


@contextmanager
def recorded(graphs: list[Any]) -> Iterator[None]:
    """Inside the block `graphs` takes every graph that torchair loads (`Graph`), or prepares for capture (`CapturedGraph`), on the
    simulated device as on an NPU."""
    from torchair._acl_concrete_graph.fx2acl_converter import AclConcreteGraph
    from torchair.core._backend import TorchNpuGraph

    original, original_passes = TorchNpuGraph.load, AclConcreteGraph.optimize_graph_without_runtime

    def optimize(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original_passes(self, *args, **kwargs)
        graphs.append(CapturedGraph(self.fx_graph))
        return result

    def load(self: Any, graph: Any, *args: Any, **kwargs: Any) -> Any:
        graphs.append(Graph(ge_graph.parse(graph.SerializeToString())))
        return original(self, graph, *args, **kwargs)

    TorchNpuGraph.load, AclConcreteGraph.optimize_graph_without_runtime = load, optimize
    try:
        yield
    finally:
        TorchNpuGraph.load, AclConcreteGraph.optimize_graph_without_runtime = original, original_passes


def assert_nodes(graph: Graph | CapturedGraph, **counts: int) -> None:
    """The graph has exactly so many nodes of each GE type named: `assert_nodes(graph, MoeReRouting=1, Transpose=0)`."""
    found = graph.node_types
    wrong = [f"{name}: expected {count}, found {found[name]}" for name, count in counts.items() if found[name] != count]
    if wrong:
        raise AssertionError(f"{'; '.join(wrong)}. The graph has {dict(found)}")


def assert_one_graph(lowered: Lowered) -> None:
    """No graph break and no recompilation: all calls ran one graph."""
    names = [graph.name for graph in lowered.graphs]
    if len(names) != 1:
        raise AssertionError(f"expected one graph for {len(lowered.outputs)} calls, got {len(names)}: {names}")


def assert_no_host_tensors(graph: Graph | CapturedGraph, allowed: Sequence[str] = ()) -> None:
    """No input of the graph is on the host, sizes and numbers (scalars) apart, and those named in `allowed`.

    A tensor on the host makes the NPU wait for a copy in every call.
    """
    found = [name for name in graph.host_tensors if name not in allowed]
    if found:
        raise AssertionError(f"inputs on the host: {found}")


def assert_equals_eager(lowered: Lowered, *, rtol: float | None = None, atol: float | None = None) -> None:
    """All calls gave what eager PyTorch gives on the CPU. Tolerances default to those of `torch.testing.assert_close`.

    Raises ValueError if the module was lowered from a description: it has given no values.
    """
    if len(lowered.expected) != len(lowered.outputs):
        raise ValueError("the module was lowered from shapes alone: it gave no values that could be compared")
    for outputs, expected in zip(lowered.outputs, lowered.expected):
        torch.testing.assert_close(outputs, expected, rtol=rtol, atol=atol, equal_nan=True)


def assert_unchanged(graph: Graph | CapturedGraph, path: str | os.PathLike) -> None:
    """The graph is, as text, what the file holds; the message is the difference.

    The file is written by `pytest --npu-graphs-update`, or if MOE_GRAPH_UPDATE_GRAPHS=1.
    Commit it: a later change of the graph then fails, and shows in review.
    """
    path, text = Path(path), graph.text()
    if os.environ.get(UPDATE, "0") not in ("", "0"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return
    if not path.exists():
        raise AssertionError(f"{path} does not exist: {_RECORD}, and commit it")
    recorded = path.read_text()
    if recorded != text:
        difference = difflib.unified_diff(recorded.splitlines(), text.splitlines(), str(path), "now", lineterm="", n=2)
        raise AssertionError(f"the graph has changed ({_RECORD}):\n" + "\n".join(difference))
