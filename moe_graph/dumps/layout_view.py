"""What a picture of a graph shows: which nodes, as which kind, with which words; and its layout."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from moe_graph.dumps.layout import Layout, lay_out
from moe_graph.dumps.model import INPUT_TYPES, Graph, Node
from moe_graph.dumps.reading_definition import OUTPUT_TYPE
from moe_graph.dumps.summary import is_moe

INPUT, OUTPUT, CONSTANT, SHAPE, MOE, CONVERSION, COMPUTE = (
    "input",
    "output",
    "constant",
    "shape",
    "moe",
    "conversion",
    "compute",
)
CONSTANT_TYPES = frozenset({"Const", "Constant", "ConstPlaceHolder", "FileConstant"})
# Change type, layout or view, compute nothing.
CONVERSION_TYPES = frozenset(
    {"Cast", "Transpose", "TransposeD", "TransData", "Reshape", "Squeeze", "Unsqueeze", "Identity", "ViewCopy"}
)
# The same among FX operators.
FX_CONVERSIONS = re.compile(
    r"aten\.(_?(unsafe_)?view|_?reshape(_alias)?|t|transpose|permute|expand|slice|select|narrow|split(_with_sizes)?|unbind|squeeze|"
    r"unsqueeze|detach|alias|as_strided|_to_copy|to|clone)\.|prims\.convert_element_type\.|npu\._?npu_dtype_cast\."
)
SHAPE_SOURCES = frozenset({"Shape", "ShapeN", "Size", "Rank", "aten.sym_size.int", "aten.sym_numel.default"})
# What sizes are computed with. Range, Fill, BroadcastTo and the like turn sizes into data: they are shown.
SHAPE_TYPES = frozenset(
    "Gather GatherV2 Pack Concat ConcatV2 ConcatD Slice StridedSlice StridedSliceV2 Cast Add Adds Sub Mul Muls Neg FloorDiv Div "
    "RealDiv FloorMod Mod Minimum Maximum Pow Squeeze Unsqueeze Reshape ReduceProd ReduceSum Identity Select SelectV2 Equal "
    "Greater GreaterEqual Less LessEqual Ceil Floor Sqrt".split()
)
SHAPE_DTYPES = frozenset({"", "int32", "int64", "bool", "float64", "double"})
# A graph with more nodes is shown without constants and shape arithmetic.
SMALL = 60

_HEIGHT, _LINE, _PADDING = 14.0, 15.0, 24.0
_NARROWEST, _WIDEST = 84.0, 230.0


@dataclass(frozen=True)
class Box:
    """A node as drawn. `lines`: its type, its name, what it gives; shortened to fit."""

    node: Node
    kind: str
    on_path: bool
    lines: tuple[str, ...]
    width: float
    height: float


@dataclass(frozen=True)
class View:
    """Boxes in the graph's order and lines (box, box, carries data?), with their layout."""

    boxes: tuple[Box, ...]
    lines: tuple[tuple[int, int, bool], ...]
    layout: Layout


def view(graph: Graph, hide: Collection[str] | None = None) -> View:
    """The picture of a graph without the nodes of the kinds in `hide` (CONSTANT, SHAPE); None: as its size asks for."""
    hide = hidden_at_first(graph) if hide is None else hide
    return view_of([box for box in boxes_of(graph) if box.kind not in hide])


def boxes_of(graph: Graph) -> list[Box]:
    """A box for each node, in the graph's order."""
    kinds, path = kinds_of(graph), moe_path(graph)
    return [_box(node, kinds[node.name], node.name in path) for node in graph.nodes]


def view_of(boxes: Sequence[Box]) -> View:
    """The picture of these boxes and the lines between them."""
    at = {box.node.name: place for place, box in enumerate(boxes)}
    lines: dict[tuple[int, int], bool] = {}
    for place, box in enumerate(boxes):
        for edge in box.node.inputs:
            if edge is not None and edge.node in at:
                pair = (at[edge.node], place)
                lines[pair] = lines.get(pair, False) or not edge.is_control
    layout = lay_out([(box.width, box.height) for box in boxes], list(lines))
    return View(tuple(boxes), tuple((start, end, data) for (start, end), data in lines.items()), layout)


def hidden_at_first(graph: Graph) -> frozenset[str]:
    """The kinds a picture of this graph leaves out unless told otherwise."""
    return frozenset() if len(graph.nodes) <= SMALL else frozenset({CONSTANT, SHAPE})


def kinds_of(graph: Graph) -> dict[str, str]:
    """Node -> its kind."""
    sizes = _shape_arithmetic(graph)
    found = {}
    for node in graph.nodes:
        if node.type in INPUT_TYPES:
            kind = INPUT
        elif node.type == OUTPUT_TYPE:
            kind = OUTPUT
        elif is_moe(node):
            kind = MOE
        elif node.type in CONSTANT_TYPES:
            kind = CONSTANT
        elif node.name in sizes:
            kind = SHAPE
        else:
            kind = CONVERSION if node.type in CONVERSION_TYPES or FX_CONVERSIONS.match(node.type) else COMPUTE
        found[node.name] = kind
    return found


def moe_path(graph: Graph) -> frozenset[str]:
    """The MoE nodes, and what is reached from one of them and leads to one of them."""
    moe = [node.name for node in graph.nodes if is_moe(node)]
    sources = {node.name: [edge.node for edge in node.inputs if edge is not None] for node in graph.nodes}
    readers = {name: [node.name for node in nodes] for name, nodes in graph.readers.items()}
    return frozenset(moe) | (_reached(moe, readers) & _reached(moe, sources))


def _reached(start: list[str], onward: dict[str, list[str]]) -> frozenset[str]:
    seen: set[str] = set()
    stack = list(start)
    while stack:
        for name in onward.get(stack.pop(), ()):
            if name not in seen:
                seen.add(name)
                stack.append(name)
    return frozenset(seen)


def _shape_arithmetic(graph: Graph) -> frozenset[str]:
    """Nodes that compute sizes out of shapes, sizes fed as inputs, and constants."""
    sizes, constants = set(), set()
    found: set[str] = set()
    for node in sources_first(graph):
        data = [edge.node for edge in node.inputs if edge is not None and not edge.is_control]
        if node.type in CONSTANT_TYPES:
            constants.add(node.name)
        elif node.type in INPUT_TYPES:
            if node.outputs and node.outputs[0].shape == () and node.outputs[0].device == "CPU":
                sizes.add(node.name)  # a size of a dynamic graph
        elif node.type in SHAPE_SOURCES or (
            (node.type in SHAPE_TYPES or node.type.startswith("operator."))
            and all(_like_sizes(output.dtype, output.shape) for output in node.outputs)
            and any(name in sizes for name in data)
            and all(name in sizes or name in constants for name in data)
        ):
            sizes.add(node.name)
            found.add(node.name)
    return frozenset(found)


def _like_sizes(dtype: str, shape: tuple[int, ...] | None) -> bool:
    return dtype in SHAPE_DTYPES and (shape is None or (len(shape) <= 1 and all(0 <= size <= 16 for size in shape)))


def sources_first(graph: Graph) -> list[Node]:
    """Nodes after what they read, so far as the graph has no circle; the order of a dump need not be that."""
    order: list[Node] = []
    seen: set[str] = set()
    for first in graph.nodes:
        stack = [(first, False)]
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
            elif node.name not in seen:
                seen.add(node.name)
                stack.append((node, True))
                stack += [
                    (graph.by_name[edge.node], False)
                    for edge in node.inputs
                    if edge is not None and edge.node in graph.by_name and edge.node not in seen
                ]
    return order


def _box(node: Node, kind: str, on_path: bool) -> Box:
    lines = [node.type, node.name]
    if node.outputs and node.outputs[0].dtype and node.type != OUTPUT_TYPE:
        lines.append(str(node.outputs[0]) + (f" +{len(node.outputs) - 1}" if len(node.outputs) > 1 else ""))
    if lines[0] == lines[1]:
        del lines[1]
    # Advance widths of the fonts the pictures name, on the generous side.
    per_character = [7.6, *[6.3] * len(lines)]
    width = max(len(text) * each for text, each in zip(lines, per_character)) + _PADDING
    width = min(max(width, _NARROWEST), _WIDEST)
    room = width - _PADDING + 4
    short = tuple(shortened(text, int(room / each)) for text, each in zip(lines, per_character))
    return Box(node, kind, on_path, short, width, _HEIGHT + _LINE * len(lines))


def shortened(text: str, length: int) -> str:
    """The text, its middle left out if it is longer than `length`."""
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"
