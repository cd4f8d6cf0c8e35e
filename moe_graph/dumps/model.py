"""A graph as every reader gives it and everything else takes it: plain, immutable, without protobuf."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from moe_graph.dumps import words

INPUT_TYPES = frozenset({"Data", "RefData"})
CONTROL = -1


@dataclass(frozen=True)
class Descriptor:
    """What a node says about one of its outputs.

    Attributes:
        dtype: in torch's words: "float16", "int32"; in GE's own, lower case, where torch has none
        shape: sizes; -1 for one that is not known before the run; None if the rank is not known
        format: "ND", "NCHW", ...; "" if the dump does not say
        device: "NPU" or "CPU" (the host); "" if the dump does not say
    """

    dtype: str
    shape: tuple[int, ...] | None
    format: str = ""
    device: str = ""

    def __str__(self) -> str:
        sizes = "?" if self.shape is None else ", ".join("?" if size < 0 else str(size) for size in self.shape)
        return f"{self.dtype}[{sizes}]"

    @property
    def is_dynamic(self) -> bool:
        """Is a size, or the rank, not known before the run?"""
        return self.shape is None or any(size < 0 for size in self.shape)


@dataclass(frozen=True)
class Edge:
    """Where an input comes from.

    Attributes:
        node: the name of the node that gives it
        output: which of its outputs; -1 (CONTROL) for an order without data
    """

    node: str
    output: int = 0

    @property
    def is_control(self) -> bool:
        """Is it an order without data?"""
        return self.output == CONTROL


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        name: its name, distinct in the graph
        type: its GE type; in an FX graph the operator, "aten.mm.default"
        inputs: in the operator's order; an absent optional input is None, control edges come last
        input_names: names of the inputs as the operator declares them ("" where the dump does not say)
        outputs: what the node says of its outputs
        attributes: values in Python's types; a constant's tensor under "value", as text when it is large
        source: lines of the model's code the node comes from ("model.py:12 in forward"), innermost last; empty if unknown
        fx: the FX node it was lowered from; "" if the dump does not say
        input_tensors: what the node says of its data inputs, in order, None for an absent one; empty if the dump does not say
    """

    name: str
    type: str
    inputs: tuple[Edge | None, ...] = ()
    input_names: tuple[str, ...] = ()
    outputs: tuple[Descriptor, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    source: tuple[str, ...] = ()
    fx: str = ""
    input_tensors: tuple[Descriptor | None, ...] = ()


@dataclass(frozen=True, repr=False)
class Graph:
    """A graph in the order of its dump.

    Attributes:
        name: the graph's name
        nodes: in the order of the dump
        kind: "txt", "pbtxt", "py", "onnx" or "fx": the kind of dump it was read from, "" if from none
        stage: "original" or "optimized"; "" if the dump does not say
    """

    name: str
    nodes: tuple[Node, ...]
    kind: str = ""
    stage: str = ""

    def __repr__(self) -> str:
        """One line; the nodes are in `nodes`."""
        return f"<Graph {self.name}{self.stage and f' ({self.stage})'}: {words.short_counts(self.types)}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the picture, if the graph is not too large."""
        return words.picture(self)

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """Nodes by their names."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def types(self) -> Counter[str]:
        """How many nodes there are of each type."""
        return Counter(node.type for node in self.nodes)

    @cached_property
    def readers(self) -> dict[str, tuple[Node, ...]]:
        """The nodes that read (or wait for) each node, by its name, in the graph's order."""
        found: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(edge.node for edge in node.inputs if edge is not None):
                found.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The nodes that stand for the graph's inputs."""
        return tuple(node for node in self.nodes if node.type in INPUT_TYPES)
