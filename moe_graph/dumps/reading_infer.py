"""What a dump leaves open and its operators make certain: types and shapes, and the FX node behind operators that do not name it.

torchair describes the last operator of each FX node only. Filled in here is what follows without knowing an operator's inference in
full; everything else stays unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from moe_graph.dumps.model import INPUT_TYPES, Descriptor, Graph, Node
from moe_graph.dumps.reading_dtypes import word_of_number

CONSTANT_TYPES = frozenset({"Const", "Constant", "ConstPlaceHolder"})
# Outputs of the type of the first input.
_AS_FIRST = frozenset(
    "Transpose TransposeD Reshape Identity TensorMove Squeeze Unsqueeze ExpandDims Flatten SplitV SplitVD Split SplitD Slice "
    "StridedSlice GatherV2 Gather Tile BroadcastTo Muls Adds MaskedFill Relu Sigmoid Rsqrt Sqrt Exp Neg ReduceSum ReduceMean "
    "ReduceMax Cumsum Contiguous".split()
)
# Outputs of the type their inputs have in common.
_AS_ALL = frozenset(
    "Add Sub Mul Div RealDiv FloorDiv FloorMod Maximum Minimum Pow Pack ConcatV2 Concat ConcatD".split()
)
TRANSPOSES = frozenset({"Transpose", "TransposeD"})
# FX operators that only permute dimensions.
TRANSPOSING = frozenset(
    "aten.t.default aten.transpose.int aten.permute.default aten.numpy_T.default aten.mT.default aten.movedim.int".split()
)
# torchair puts views off until an operator reads them. On what it then makes of them it notes the FX tensor, but no FX node.
MARKED_VIEW = "a view"
VIEW = f"{MARKED_VIEW} read by "
VIEW_TYPES = TRANSPOSES | {"Reshape"}
_SHAPE_AS_FIRST = frozenset({"Cast", "Identity", "TensorMove"})


def complete(graph: Graph) -> Graph:
    """The graph with what is certain filled in, nodes in their order."""
    outputs: dict[str, tuple[Descriptor, ...]] = {}
    nodes = []
    for node in graph.nodes:
        found = tuple(_infer(node, at, desc, outputs) for at, desc in enumerate(node.outputs))
        outputs[node.name] = found
        nodes.append(replace(node, outputs=found) if found != node.outputs else node)
    return replace(graph, nodes=tuple(_name_fx(nodes)))


def read_by(node: Node, at: int, outputs: Mapping[str, tuple[Descriptor, ...]]) -> Descriptor | None:
    """What a node reads as its input `at`: what it says of it, completed by what the node it comes from says. None if it is not fed."""
    edge = node.inputs[at]
    if edge is None:
        return None
    found = outputs.get(edge.node, ())
    given = found[edge.output] if 0 <= edge.output < len(found) else Descriptor("", None)
    said = node.input_tensors[at] if at < len(node.input_tensors) else None
    if said is None:
        return given
    return replace(given, dtype=said.dtype or given.dtype, shape=given.shape if said.shape is None else said.shape)


def _infer(node: Node, at: int, desc: Descriptor, outputs: dict[str, tuple[Descriptor, ...]]) -> Descriptor:
    count = sum(edge is None or not edge.is_control for edge in node.inputs)
    inputs = [read_by(node, position, outputs) for position in range(count)]
    sources = [source for source in inputs if source is not None]
    if node.type == "MoeReRouting":
        return _re_routing(at, desc, inputs)
    dtype, shape = desc.dtype, desc.shape
    if not dtype:
        if node.type == "Cast" and isinstance(node.attributes.get("dst_type"), int):
            dtype = word_of_number(node.attributes["dst_type"])
        elif node.type in _AS_FIRST and sources:
            dtype = sources[0].dtype
        elif node.type in _AS_ALL and len({source.dtype for source in sources}) == 1:
            dtype = sources[0].dtype
        elif node.type == "Shape":
            dtype = word_of_number(node.attributes.get("dtype", 3))
    if shape is None and node.type in _SHAPE_AS_FIRST and sources:
        shape = sources[0].shape
    return replace(desc, dtype=dtype, shape=shape) if (dtype, shape) != (desc.dtype, desc.shape) else desc


def _re_routing(at: int, desc: Descriptor, inputs: list[Descriptor | None]) -> Descriptor:
    """An output of MoeReRouting by its contract (foundation/contract.py), as far as its inputs are known: the dump may show a view."""
    unknown = Descriptor("", None)
    tokens, counts, scales = (*inputs, None, None, None)[:3]
    tokens, counts = tokens or unknown, counts or unknown
    rows = tokens.shape[:1] if tokens.shape else None
    last = counts.shape[-1:] if counts.shape else None
    known = (tokens, scales or Descriptor("float32", rows), Descriptor("int32", rows), Descriptor(counts.dtype, last))
    expected = known[at] if at < len(known) else unknown
    return replace(
        desc, dtype=desc.dtype or expected.dtype, shape=desc.shape if expected.shape is None else expected.shape
    )


def _name_fx(nodes: list[Node]) -> list[Node]:
    """torchair names the FX node on the last operator of its lowering: the operators before it take the name from their reader.

    What it makes of a view that it had put off comes marked, the last operator of it: its Transposes are the model's.
    """
    names: dict[str, str] = {}
    in_views: set[str] = set()
    found = []
    for node in reversed(nodes):
        own = "" if node.fx == MARKED_VIEW else node.fx
        fx = names[node.name] = own or names.get(node.name, "")
        view = node.fx == MARKED_VIEW or (not own and node.type in VIEW_TYPES and node.name in in_views)
        sources = [edge.node for edge in node.inputs if edge is not None and not edge.is_control]
        in_views.update(sources if view else ())
        if fx:
            names.update(dict.fromkeys(sources, fx))  # the nearest reader's: it is met last
        if view and node.type in TRANSPOSES:
            fx = f"{VIEW}{fx}" if fx else MARKED_VIEW
        found.append(
            replace(node, fx="" if node.type in INPUT_TYPES | CONSTANT_TYPES else fx) if fx != node.fx else node
        )
    return found[::-1]
