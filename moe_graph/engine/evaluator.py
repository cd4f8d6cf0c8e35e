"""Runs a planned graph on CPU tensors."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moe_graph.definitions import known
from moe_graph.engine import dtypes, graph, stand_ins
from moe_graph.engine.errors import GraphError, KernelError
from moe_graph.engine.graph import Node, Plan
from moe_graph.foundation import survey

# What watches a run: called with the plan and the values known at its start (inputs and constants), it returns what to call
# after each node, with the node and its outputs. Observers must not change a tensor, nor keep one that they have not copied.
Observer = Callable[[Plan, Mapping[tuple[int, int], Tensor]], Callable[[Node, list[Tensor]], None]]


class _Watcher(NamedTuple):
    observer: Observer
    thread: int | None  # the only one that is watched
    compares_with_fx: bool


_lock = threading.Lock()
_watchers: tuple[_Watcher, ...] = ()


@contextlib.contextmanager
def observe(observer: Observer, all_threads: bool = False, compares_with_fx: bool = False) -> Iterator[None]:
    """Inside the block `observer` watches every run of a Program in this thread, or in all.

    One that compares the outputs with the FX graph itself says so: the run then returns them whatever FX has for them.
    """
    global _watchers
    watcher = _Watcher(observer, None if all_threads else threading.get_ident(), compares_with_fx)
    with _lock:
        _watchers += (watcher,)
    try:
        yield
    finally:
        with _lock:
            _watchers = tuple(other for other in _watchers if other is not watcher)


class Program:
    """A graph ready to run. It holds no state between runs, so threads may run it at the same time."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @property
    def name(self) -> str:
        """The graph's name."""
        return self._plan.name

    @property
    def output_shapes(self) -> list[tuple[int, ...]]:
        """The outputs' dimensions as NetOutput describes them; -1: known at run time only."""
        return [described.shape for described in self._plan.outputs]

    @property
    def node_types(self) -> list[str]:
        """GE types of the graph's nodes, in the graph's order."""
        return [node.type for node in self._plan.nodes]

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        """Run on CPU tensors, one for each Data node by its index; return the outputs in NetOutput's order.

        Raises GraphError if the number or a dtype of the inputs does not fit, KernelError if a kernel fails, or gives an output that
        has not the dtype and shape that FX has for it: then the operator's fake implementation or its converter is wrong.
        An output may share memory with an input where the graph passes one through, never with a constant of the graph.
        """
        plan, thread = self._plan, threading.get_ident()
        if len(inputs) != len(plan.data):
            raise GraphError(f"graph {plan.name!r} takes {len(plan.data)} inputs, got {len(inputs)}")
        values = dict(plan.constants)
        for position, value in enumerate(inputs):
            node = plan.data[position]
            values[node.index, 0] = _input(node, position, value)
        with torch.no_grad():
            watching = [watcher for watcher in _watchers if watcher.thread in (None, thread)]
            recorders = [watcher.observer(plan, values) for watcher in watching]
            execute = stand_ins.StandIns(plan, values, _execute) if survey.is_on() else _execute
            for index in plan.order:
                node = plan.nodes[index]
                results = execute(node, values, plan)
                for record in recorders:
                    record(node, results)
                values.update(((index, output), result) for output, result in enumerate(results))
                del results  # what no later node reads is freed now, not after the next node
                for slot in plan.frees.get(index, ()):
                    values.pop(slot, None)
            if isinstance(execute, stand_ins.StandIns):
                execute.check(values)
            results = [_apart_from_constants(values[slot], plan) for slot in plan.results]
        if not any(watcher.compares_with_fx for watcher in watching):
            _check_outputs(results, plan)
        return results


def load_model(serialized: bytes, source_lines: Mapping[str, str] | None = None) -> Program:
    """Parse and plan a serialized ModelDef, as torchair hands it to GE. Raises GraphError.

    `source_lines` tells for an FX node's name the line of the user's program it came from; errors quote it.
    """
    return Program(graph.plan(graph.parse(serialized), source_lines))


def _input(node: Node, position: int, value: Tensor) -> Tensor:
    """The value as the Data node describes it. torchair describes a number as a scalar and feeds it as a tensor [1]."""
    if not isinstance(value, Tensor):
        raise GraphError(f"input {position} of {node} must be a tensor, got {type(value).__name__}")
    described = node.outputs[0]
    if described.type is not None and value.dtype != described.type.torch:
        raise GraphError(f"input {position} of {node} must be {described.type.name}, got {value.dtype}")
    if not described.shape and value.shape == (1,):
        value = value.reshape(())
    if not _has_shape(value, described.shape):
        raise GraphError(f"input {position} of {node} must have shape {list(described.shape)}, got {list(value.shape)}")
    return value.detach()


def _check_outputs(results: list[Tensor], plan: Plan) -> None:
    for position, (result, described) in enumerate(zip(results, plan.outputs)):
        fits = described.type is None or result.dtype == described.type.torch
        if described.is_fx and not (fits and _has_shape(result, described.shape)):
            type_name = described.type.name if described.type else "any dtype"
            raise KernelError(
                f"output {position} of the graph, {plan.nodes[plan.results[position][0]]}, is {result.dtype} {list(result.shape)}, "
                f"but in the FX graph it is {type_name} {list(described.shape)}: the operator's fake (Meta) implementation or its "
                "converter is wrong"
            )


def _has_shape(value: Tensor, shape: tuple[int, ...]) -> bool:
    """Is it that shape, as far as the graph says (-1: any size, [-2]: any rank)?"""
    return -2 in shape or (
        len(shape) == value.dim() and all(size in (-1, got) for size, got in zip(shape, value.shape))
    )


def _execute(node: Node, values: dict[tuple[int, int], Tensor], plan: Plan) -> list[Tensor]:
    fed = [None if slot is None else values[slot] for slot in node.slots]
    for description, value in zip(node.inputs, fed):
        if description.name in node.kernel.assigns and value is not None and _is_constant(value, plan):
            raise KernelError(f"{node} assigns to its input {description.name!r}, which is a constant of the graph")
    try:
        results = compute(node, fed)
    except Exception as error:
        raise KernelError(f"{node} failed on {_describe(node, fed)}: {error}") from error
    if len(results) != len(node.outputs):
        raise KernelError(f"{node}: the kernel returned {len(results)} outputs, the graph has {len(node.outputs)}")
    for result, described in zip(results, node.outputs):
        # torchair describes what it names after an FX tensor; other descriptors it leaves at a default.
        if described.fx_name and described.type is not None and result.dtype != described.type.torch:
            raise KernelError(
                f"{node}: output {described.name!r} must be {described.type.name}, the kernel returned {result.dtype} "
                f"on {_describe(node, fed)}{_outside_of_the_definition(node, fed)}"
            )
    return results


def _outside_of_the_definition(node: Node, fed: list[Tensor | None]) -> str:
    """The first input of a dtype that GE's definition of the type does not list: then the converter is wrong and not the kernel."""
    definition = known.find(node.type)
    ports = {port.name: port.dtypes for port in definition.inputs} if definition else {}
    for described, value in zip(node.inputs, fed):
        allowed = ports.get(described.name, ())
        if value is not None and allowed and value.dtype not in [t.torch for t in dtypes.TYPES if t.name in allowed]:
            return f": GE's definition takes {', '.join(allowed)} for {described.name!r}, the converter hands over another type"
    return ""


def compute(node: Node, fed: Sequence[Tensor | None]) -> list[Tensor]:
    """What a node's kernel gives for the values of its inputs, as one list. Raises what the kernel raises."""
    arguments = [
        None if position is None else [fed[p] for p in position] if isinstance(position, list) else fed[position]
        for position in node.bound
    ]
    return _flat(node.kernel.function(*arguments, **node.attributes))


def _flat(results: object) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    return [tensor for result in results for tensor in ([result] if isinstance(result, Tensor) else result)]


def _apart_from_constants(result: Tensor, plan: Plan) -> Tensor:
    """Who receives an output may write to it; the graph's constants serve every run."""
    return result.clone() if _is_constant(result, plan) else result


def _is_constant(value: Tensor, plan: Plan) -> bool:
    return value.numel() > 0 and value.untyped_storage().data_ptr() in plan.constant_memory


def _describe(node: Node, fed: list[Tensor | None]) -> str:
    return ", ".join(
        f"{desc.name}: {'absent' if value is None else f'{value.dtype} {list(value.shape)}'}"
        for desc, value in zip(node.inputs, fed)
    )
