"""An FX graph run on tensors without memory: what each node would allocate, read, write and compute, in the order of the run.

The nodes run one by one with torch's fake implementations, and a value is let go after its last reader, as in the code that torch
generates from the graph. What is counted is storage: views and results in place take none.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from moe_graph.planning import captured_attention, communication, flops, traffic
from moe_graph.planning.served import Served


@dataclass
class Step:
    """What one node does. Bytes are those of the elements; GE and the allocator add alignment and workspace.

    Attributes:
        name, type: the node's name, and its operator or GE type
        line: the line of the program it comes from, "" if it is not known
        fx: the FX node it comes from
        flops: multiplications and additions of products and attention
        flops_are_bound: they depend on values, and are those for filled operands
        read, written: bytes of operands and results
        allocated: bytes of the results that are new memory
        live: the most bytes of results that live while the node runs
        communication: what it sends to other ranks
        dtype: of the operand that decides how fast a product is: the first's, in torch's words
    """

    name: str
    type: str
    line: str = ""
    fx: str = ""
    flops: int = 0
    flops_are_bound: bool = False
    read: int = 0
    written: int = 0
    allocated: int = 0
    live: int = 0
    communication: tuple[communication.Message, ...] = ()
    dtype: str = ""

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


@dataclass
class Rehearsal:
    """What a run of a graph does, step by step.

    Attributes:
        steps: in the order of the run; without the inputs
        peak: the most bytes of results that live at one time
        at_peak: (node, bytes) of the results that live then, the largest first
        results: (shape, dtype) of each node's results by the node's name, None for what is no tensor
        written_inputs: positions of the inputs that the graph writes to
        cache_inputs: positions of the inputs that are an operator's cache (an argument named so)
        routed: the routings of tokens to experts
    """

    steps: list[Step] = field(default_factory=list)
    peak: int = 0
    at_peak: list[tuple[str, int]] = field(default_factory=list)
    results: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    written_inputs: set[int] = field(default_factory=set)
    cache_inputs: set[int] = field(default_factory=set)
    routed: list[communication.Routed] = field(default_factory=list)


def rehearse(
    module: torch.fx.GraphModule,
    inputs: Sequence[Any],
    mode: FakeTensorMode,
    lines: dict[str, str] | None = None,
    captured: bool = True,
) -> Rehearsal:
    """Run `module` node by node on fake `inputs` of `mode`. `captured`: it is run as it is, not lowered to GE.

    Raises what the fake implementation of a node raises, with a note that names the node and its line; PlanError for a call that the
    product does not serve.
    """
    watch = _Watch(inputs, lines or {}, Served(captured))
    run = _Run(module, watch)
    with mode, torch.no_grad(), watch:
        run.run(*inputs)
    watch.result.at_peak.sort(key=lambda one: -one[1])
    return watch.result


class _Watch(TorchDispatchMode):
    """Sees every operator that a node dispatches, and the storages that are made and let go."""

    def __init__(self, inputs: Sequence[Any], lines: dict[str, str], served: Served) -> None:
        super().__init__()
        self._served = served
        self.result = Rehearsal()
        self._lines = lines
        self._inputs = {_key(tensor): at for at, tensor in enumerate(inputs) if isinstance(tensor, Tensor)}
        self._live: dict[int, tuple[StorageWeakRef, str, int]] = {}
        self._bytes = 0
        self._step = Step("", "")

    def begin(self, node: torch.fx.Node) -> None:
        self._release()
        target: Any = node.target
        kind = str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
        self._step = Step(node.name, kind, self._lines.get(node.name, ""), node.name, live=self._bytes)

    def end(self, node: torch.fx.Node, result: Any) -> None:
        results = result if isinstance(result, (list, tuple)) else [result]
        self.result.results[node.name] = tuple(
            (tuple(map(int, value.shape)), value.dtype) if isinstance(value, Tensor) else None for value in results
        )
        if node.op == "call_function" and node.target is not operator.getitem:
            self.result.steps.append(self._step)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if captured_attention.is_workspace(func):
            return torch.empty(0, dtype=torch.uint8, device=args[0].device)
        func, kwargs, result = captured_attention.as_called(func, kwargs or {})
        if result is None:
            result = func(*args, **kwargs)
        step = self._step
        self._served.check(func, args, kwargs, step.line)
        operations = flops.count(func, args, kwargs, result)
        step.flops += operations
        if operations:
            step.dtype = str(traffic.tensors((args, kwargs))[0].dtype).removeprefix("torch.")
        step.flops_are_bound |= flops.is_upper_bound(func)
        read, written = traffic.read_and_written(func, args, kwargs, result)
        step.read, step.written = step.read + read, step.written + written
        step.communication += communication.messages(func, args, kwargs, result)
        self.result.routed += communication.routed(func, args, kwargs, result)
        self.result.written_inputs.update(self._positions(traffic.written_to(func, args, kwargs)))
        self.result.cache_inputs.update(self._positions(traffic.caches(func, args, kwargs)))
        self._allocate(traffic.tensors(result))
        return result

    def _positions(self, values: list[Tensor]) -> set[int]:
        return {self._inputs[key] for key in map(_key, values) if key in self._inputs}

    def _allocate(self, results: list[Tensor]) -> None:
        """Take up the storages that are new, and see whether this is the peak."""
        self._release()
        for tensor in results:
            key = _key(tensor)
            if key in self._inputs or key in self._live or tensor.device.type == "cpu":
                continue
            storage = tensor.untyped_storage()
            size = int(storage.nbytes())
            self._live[key] = (StorageWeakRef(storage), self._step.name, size)
            self._bytes += size
            self._step.allocated += size
        self._step.live = max(self._step.live, self._bytes)
        if self._bytes > self.result.peak:
            self.result.peak = self._bytes
            self.result.at_peak = [(name, size) for _, name, size in self._live.values()]

    def _release(self) -> None:
        for key in [key for key, (storage, _, _) in self._live.items() if storage.expired()]:
            self._bytes -= self._live.pop(key)[2]


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Run(torch.fx.Interpreter):
    """Node by node; a result that nobody reads is let go at once, as in the code that torch generates."""

    def __init__(self, module: torch.fx.GraphModule, watch: _Watch) -> None:
        super().__init__(module)
        self._watch = watch

    def run_node(self, n: torch.fx.Node) -> Any:
        if n.op in ("placeholder", "output", "get_attr"):
            return super().run_node(n)
        self._watch.begin(n)
        result = super().run_node(n)
        self._watch.end(n, result)
        return result if n.users else None
