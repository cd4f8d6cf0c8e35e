"""A GE graph, parsed from protobuf and planned once: order, bound inputs and attributes, constants, last uses."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.message import DecodeError
from torch import Tensor

from moe_graph.engine import attributes, dtypes, proto, registry
from moe_graph.engine.dtypes import GeType
from moe_graph.engine.errors import GraphError
from moe_graph.foundation import survey

DATA_TYPES = ("Data", "RefData")
CONST_TYPES = ("Const", "Constant")
OUTPUT_TYPE = "NetOutput"
# Types that give the elements of their first input, in another shape or order.
_KEEP_ELEMENTS = (
    "Reshape",
    "Transpose",
    "Unsqueeze",
    "Squeeze",
    "Identity",
    "TensorMove",
    "View",
    "Contiguous",
    "ExpandDims",
)
# Types whose first result is int4 when they are asked for DT_INT32, eight of which go into one.
_INT32, _INT4 = 3, 29
_INT4_FOR_INT32 = {"FlatQuant": "dst_dtype"}
# Attributes that place or lay out and never change a value. Those that begin with "_" are torchair's and GE's notes.
NOTES = frozenset({"input_layout_info", "output_layout_info", "torchair_enable_data_dump", "op_exec_never_timeout"})


@dataclass(frozen=True)
class Descriptor:
    """An input or output as the graph describes it: GE name, type (None: left open) and dimensions (-1 unknown, [-2] unknown rank).

    fx_name   the FX tensor it is, as torchair notes it on outputs ("add-aten.add.Tensor.OUTPUT.0"), or ""
    fx_meta   that FX value in words, its sizes by their symbols ("Tensor(dtype=torch.float32, shape=torch.Size([s77, 16])"), or ""
    """

    name: str
    type: GeType | None
    shape: tuple[int, ...]
    fx_name: str = ""
    fx_meta: str = ""

    @property
    def is_fx(self) -> bool:
        """Are its type and dimensions those of a tensor of the FX graph?"""
        return self.fx_meta.startswith("Tensor(")


@dataclass
class Node:
    """A planned node. `slots` are the values of its data inputs, (node index, output index), in the node's order."""

    index: int
    name: str
    type: str
    source: str
    inputs: tuple[Descriptor, ...]
    outputs: tuple[Descriptor, ...]
    slots: tuple[tuple[int, int], ...] = ()
    controls: tuple[int, ...] = ()
    kernel: registry.Kernel | None = None
    bound: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The line of the program it came from; where that is not known, the FX node."""
        return self.source.partition(", ")[2] or self.source

    def __str__(self) -> str:
        origin = f", from {self.source}" if self.source else ""
        return f"node {self.name!r} (GE type {self.type}{origin})"


@dataclass
class Plan:
    """What the evaluator runs.

    nodes      every node, by index           order      indices of the nodes to run, inputs and constants left out
    data       index of each Data node, by position of the run-time input
    constants  values known from the start    results    slots of the outputs, in order
    outputs    how NetOutput describes them   frees      after node i has run, the slots no later node reads
    constant_memory   where the constants lie
    """

    name: str
    nodes: list[Node]
    order: list[int]
    data: dict[int, Node]
    constants: dict[tuple[int, int], Tensor]
    results: list[tuple[int, int]]
    outputs: tuple[Descriptor, ...]
    frees: dict[int, list[tuple[int, int]]]
    constant_memory: frozenset[int]


def parse(serialized: bytes) -> Any:
    """The one GraphDef of a serialized ModelDef. Raises GraphError if the bytes are no such thing."""
    model = proto.messages().ModelDef()
    try:
        model.ParseFromString(serialized)
    except (DecodeError, RuntimeError) as error:
        raise GraphError(f"not a serialized ModelDef: {error}") from error
    if len(model.graph) != 1:
        raise GraphError(f"a ModelDef must hold one graph, got {len(model.graph)}")
    return model.graph[0]


def plan(
    graph: Any,
    source_lines: Mapping[str, str] | None = None,
    unbound: Callable[[Node, GraphError], None] | None = None,
) -> Plan:
    """Plan a GraphDef. Raises GraphError that names the node: unknown type, missing input, cycle, duplicate name, no NetOutput.

    `source_lines` tells for an FX node's name the line of the user's program it came from; errors quote it. `unbound` is told of a node
    that no kernel takes, in place of the error; in a survey it is noted.
    """
    unbound = unbound or (_survey if survey.is_on() else None)
    nodes = [_node(index, op) for index, op in enumerate(graph.op)]
    by_name: dict[str, Node] = {}
    for node in nodes:
        if node.name in by_name:
            raise GraphError(f"two nodes are named {node.name!r}")
        by_name[node.name] = node
    for node, op in zip(nodes, graph.op):
        _connect(node, op, by_name)
    _trace_sources(nodes, source_lines or {})
    outputs = [node for node in nodes if node.type == OUTPUT_TYPE]
    if len(outputs) != 1:
        raise GraphError(f"graph {graph.name!r} must have one NetOutput, got {len(outputs)}")

    needed = _order(nodes, outputs[0])
    _carry_types_told_as_bytes(nodes, graph.op, needed)
    constants, data, order = {}, {}, []
    for index in needed:
        node, op = nodes[index], graph.op[index]
        if node.type in CONST_TYPES:
            constants[index, 0] = _constant(node, op)
        elif node.type not in DATA_TYPES and node.type != OUTPUT_TYPE:
            try:
                _bind(node, op)
            except GraphError as error:
                if unbound is None:
                    raise
                node.kernel = None
                unbound(node, error)
            order.append(index)
    for node, op in zip(nodes, graph.op):
        if node.type in DATA_TYPES:
            position = _position(node, op)
            if position in data:
                raise GraphError(f"{node} and {data[position]} both take input {position}")
            data[position] = node
    if sorted(data) != list(range(len(data))):
        raise GraphError(f"graph {graph.name!r}: the Data nodes take inputs {sorted(data)}, not each once from 0 on")
    results = list(outputs[0].slots)
    if None in results:
        raise GraphError(f"{outputs[0]}: input {results.index(None)} is not fed")
    memory = frozenset(value.untyped_storage().data_ptr() for value in constants.values() if value.numel())
    described, frees = outputs[0].inputs, _frees(nodes, order, results)
    return Plan(graph.name, nodes, order, data, constants, results, described, frees, memory)


def _node(index: int, op: Any) -> Node:
    return Node(
        index,
        op.name,
        op.type,
        next(filter(None, map(_fx_name, op.output_desc)), ""),
        tuple(map(_descriptor, op.input_desc)),
        tuple(map(_descriptor, op.output_desc)),
    )


def _descriptor(desc: Any) -> Descriptor:
    fx_meta = desc.attr["_meta"].s.decode(errors="replace") if "_meta" in desc.attr else ""
    # Of an input in a private format torchair writes the program's shape beside the descriptor's own, which is that of the format.
    private = "origin_shape_initialized" in desc.attr and desc.attr["origin_shape_initialized"].b
    shape = desc.attr["origin_shape"].list.i if private else desc.shape.dim
    return Descriptor(desc.name, dtypes.from_proto(desc.dtype), tuple(shape), _fx_name(desc), fx_meta)


def _fx_name(desc: Any) -> str:
    return desc.attr["_fx_tensor_name"].s.decode(errors="replace") if "_fx_tensor_name" in desc.attr else ""


def _trace_sources(nodes: list[Node], source_lines: Mapping[str, str]) -> None:
    """torchair notes the FX node on the last operator of its lowering only: the operators before it take it from their reader."""
    for node in reversed(nodes):
        for slot in node.slots:
            reader = None if slot is None else nodes[slot[0]]
            if reader is not None and not reader.source and reader.type not in (*DATA_TYPES, *CONST_TYPES):
                reader.source = node.source
    for node in nodes:
        line = source_lines.get(node.source.partition("-")[0])
        if line:
            node.source += f", {line}"


def _carry_types_told_as_bytes(nodes: list[Node], operators: Any, order: list[int]) -> None:
    """A type that FX has for uint8 goes on to the readers, as GE infers it: torchair describes it where it is made, if at all."""
    for node in map(nodes.__getitem__, order):
        read = [None if slot is None else nodes[slot[0]].outputs[slot[1] : slot[1] + 1] for slot in node.slots]
        node.inputs = tuple(
            replace(own, type=source[0].type) if source and source[0].type and source[0].type.told_as_bytes else own
            for own, source in zip(node.inputs, read)
        )
        made = (
            node.inputs[0].type if node.type in _KEEP_ELEMENTS and node.inputs else _asked_type(operators[node.index])
        )
        if made is not None and made.told_as_bytes and node.outputs:
            node.outputs = (replace(node.outputs[0], type=made), *node.outputs[1:])


def _asked_type(op: Any) -> GeType | None:
    """The type that an attribute asks for, of an operator that quantises to a given one or reads bytes as one."""
    asked = _INT4_FOR_INT32.get(op.type)
    if asked is not None and attributes.decode(op.attr[asked]) == _INT32:
        return dtypes.from_ge(_INT4)
    attribute = "type" if op.type == "Bitcast" else "dst_type"
    number = attributes.decode(op.attr[attribute]) if attribute in op.attr else None
    return dtypes.from_ge(number) if isinstance(number, int) and number in dtypes.TOLD_AS_BYTES else None


def _connect(node: Node, op: Any, by_name: dict[str, Node]) -> None:
    slots: list[tuple[int, int] | None] = []
    controls = []
    for reference in op.input:
        if not reference:  # an optional input that is not fed
            slots.append(None)
            continue
        name, _, output = reference.rpartition(":")
        source = by_name.get(name)
        if source is None:
            raise GraphError(f"{node} reads {reference!r}, but no node has that name")
        if output == "-1":
            controls.append(source.index)
            continue
        # Inputs and constants have one value, whatever they describe.
        count = 1 if source.type in (*DATA_TYPES, *CONST_TYPES) else len(source.outputs)
        if not (output.isascii() and output.isdigit() and len(output) < 10 and int(output) < count):
            raise GraphError(f"{node} reads {reference!r}, but {source} has {count} outputs")
        slots.append((source.index, int(output)))
    if node.type not in DATA_TYPES and len(slots) != len(node.inputs):
        raise GraphError(f"{node} has {len(slots)} inputs and {len(node.inputs)} descriptors of inputs")
    node.controls = tuple(controls)
    node.slots = tuple(slots)


def _order(nodes: list[Node], output: Node) -> list[int]:
    """Indices of the nodes that are run, each after what it depends on by data or control edges, else as the graph lists them.

    Those that the output depends on, and those that have no output, which are there for what they do. The graph lists its nodes as the
    program calls them, so collectives come in one order on all ranks.
    """
    before = [{slot[0] for slot in node.slots if slot is not None} | set(node.controls) for node in nodes]
    needed: set[int] = set()
    todo = [output.index, *(node.index for node in nodes if not node.outputs and node.type != OUTPUT_TYPE)]
    while todo:
        index = todo.pop()
        if index not in needed:
            needed.add(index)
            todo.extend(before[index])
    waits = {index: len(before[index]) for index in needed}
    readers: dict[int, list[int]] = {}
    for index in needed:
        for other in before[index]:
            readers.setdefault(other, []).append(index)
    ready = [index for index, count in waits.items() if not count]
    heapq.heapify(ready)
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers.get(index, ()):
            waits[reader] -= 1
            if not waits[reader]:
                heapq.heappush(ready, reader)
    if len(order) != len(needed):
        node, reader = _on_a_cycle(waits, before)
        through = f" through {nodes[reader]}" if reader != node else ""
        raise GraphError(f"{nodes[node]} is on a cycle{through}")
    # The output is last: a node without outputs may come behind it in the list.
    order.remove(output.index)
    return [*order, output.index]


def _on_a_cycle(waits: dict[int, int], before: list[set[int]]) -> tuple[int, int]:
    """A node on a cycle, and the one on it that reads it, given how many nodes each still waits for.

    Back along those that wait, until one comes again."""
    node = reader = min(index for index, count in waits.items() if count)
    seen: set[int] = set()
    while node not in seen:
        seen.add(node)
        node, reader = min(other for other in before[node] if waits[other]), node
    return node, reader


def _position(node: Node, op: Any) -> int:
    """Which run-time input a Data node takes."""
    if "index" not in op.attr or op.attr["index"].WhichOneof("value") != "i":
        raise GraphError(f"{node} has no number in its attribute 'index'")
    if not node.outputs:
        raise GraphError(f"{node} has no descriptor of its output")
    return op.attr["index"].i


def _constant(node: Node, op: Any) -> Tensor:
    if "value" not in op.attr or op.attr["value"].WhichOneof("value") != "t":
        raise GraphError(f"{node} has no tensor in its attribute 'value'")
    try:
        return attributes.tensor(op.attr["value"].t)
    except GraphError as error:
        raise GraphError(f"{node}: {error}") from error


def _bind(node: Node, op: Any) -> None:
    """Find the kernel, and bind the node's inputs and attributes to its parameters."""
    kernel = registry.get(node.type)
    if kernel is None:
        raise GraphError(
            f"{node}: the host engine has no kernel for GE type {node.type}. To add one, in your program:\n"
            f'    @moe_graph.engine.kernel("{node.type}")  # import moe_graph.engine\n'
            "    def kernel(x: torch.Tensor, *, attribute: int = 0) -> torch.Tensor:  # GE's inputs, then its attributes, by their names\n"
            "        return ...  # of CPU tensors; a tuple for several outputs"
        )
    fed = [(desc.name, None if slot is None else at) for at, (desc, slot) in enumerate(zip(node.inputs, node.slots))]
    try:
        node.kernel = kernel
        node.bound = registry.bind_inputs(kernel, fed)
        node.attributes = _bind_attributes(kernel, op)
    except GraphError as error:
        raise GraphError(f"{node}: {error}") from error
    if kernel.wants_node:
        node.attributes["node"] = node


def _survey(node: Node, error: GraphError) -> None:
    """Note what is lacking; the evaluator answers for the node with stand-ins."""
    if registry.get(node.type) is None:
        taken = ", ".join(f"{desc.name} {desc.type.name if desc.type else ''}".strip() for desc in node.inputs)
        survey.found(survey.GE_TYPE, node.type, f"takes {taken}", node.line)
    else:
        survey.found(survey.GE_FORM, node.type, str(error), node.line)


def _bind_attributes(kernel: registry.Kernel, op: Any) -> dict[str, Any]:
    values = {}
    for attribute in kernel.attributes:
        if attribute.name in op.attr:
            given = op.attr[attribute.name]
            if attribute.kinds and given.WhichOneof("value") not in attribute.kinds:
                kind = given.WhichOneof("value")
                raise GraphError(
                    f"attribute {attribute.name!r} must be of kind {' or '.join(attribute.kinds)}, got {kind}"
                )
            value = attributes.decode(given)
            values[attribute.name] = dtypes.from_ge(value) if attribute.is_type else value
        elif attribute.required:
            raise GraphError(f"attribute {attribute.name!r} is missing")
        elif attribute.is_type and isinstance(attribute.default, int):
            values[attribute.name] = dtypes.from_ge(attribute.default)
    known = {attribute.name for attribute in kernel.attributes}
    for name in op.attr:
        if name not in known and not name.startswith("_") and name not in NOTES:
            value = attributes.decode(op.attr[name])
            raise GraphError(f"the kernel does not model attribute {name!r} (here {value!r}); it has {sorted(known)}")
    return values


def _frees(nodes: list[Node], order: list[int], results: list[tuple[int, int]]) -> dict[int, list[tuple[int, int]]]:
    last: dict[tuple[int, int], int] = {}
    for index in order:
        for slot in nodes[index].slots:
            if slot is not None:
                last[slot] = index
        for output in range(len(nodes[index].outputs)):
            last.setdefault((index, output), index)  # read by nobody: freed at once
    frees: dict[int, list[tuple[int, int]]] = {}
    kept = set(results)
    for slot, index in last.items():
        if slot not in kept:
            frees.setdefault(index, []).append(slot)
    return frees
