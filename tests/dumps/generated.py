"""Graphs for property tests, and single edits of them with the difference each must give."""

from __future__ import annotations

import random
from dataclasses import replace

from moe_graph.dumps import Descriptor, Edge, Graph, Node
from moe_graph.dumps.model import CONTROL

TYPES = ("Add", "Mul", "Cast", "Transpose", "MatMul", "MoeReRouting")
DTYPES = ("float16", "float32", "int32")


def graph(seed, size=20, told_apart=True):
    """A graph of `size` operators. Unless `told_apart`, many of them look alike."""
    pick = random.Random(seed)
    nodes = [data(at) for at in range(pick.randint(1, 3))]
    for at in range(size):
        kind = pick.choice(TYPES)
        sources = [pick.choice(nodes[-8:]) for _ in range(pick.randint(1, 3))]
        inputs = [Edge(source.name, pick.randrange(len(source.outputs))) for source in sources]
        if pick.random() < 0.15:
            inputs.append(None)
        if pick.random() < 0.1:
            inputs.append(Edge(pick.choice(nodes).name, CONTROL))
        attributes = {"number": at} if told_apart else {"axis": pick.randrange(2)}
        if pick.random() < 0.2:
            nodes.append(
                Node(f"c{at}", "Const", outputs=(Descriptor("int64", (1,)),), attributes={"value": [pick.randrange(3)]})
            )
            inputs.insert(0, Edge(f"c{at}"))
        names = tuple(f"x{i}" for i, edge in enumerate(inputs) if edge is None or not edge.is_control)
        nodes.append(Node(f"n{at}", kind, tuple(inputs), names, tensors(pick), attributes))
    read = {edge.node for node in nodes for edge in node.inputs if edge is not None}
    ends = [Edge(node.name) for node in nodes if node.name not in read and node.type != "Data"]
    nodes.append(Node("NetOutput", "NetOutput", tuple(ends)))
    return Graph("generated", tuple(nodes))


def layers(count):
    """`count` equal layers of eight nodes, three of which are alike as well."""
    nodes = [data(0)]

    def add(kind, *sources, **attributes):
        name = f"{kind}_{len(nodes)}"
        tensor = Descriptor("float16", (2, 8))
        nodes.append(Node(name, kind, tuple(map(Edge, sources)), (), (tensor,), attributes))
        return name

    current = "arg0"
    for _ in range(count):
        weight = add("Const", value=[1])
        q, k, v = (add("MatMul", current, weight) for _ in range(3))
        current = add("Add", current, add("MatMul", add("Softmax", add("MatMul", q, k)), v))
    nodes.append(Node("NetOutput", "NetOutput", (Edge(current),)))
    return Graph("layers", tuple(nodes))


def data(at):
    return Node(f"arg{at}", "Data", outputs=(Descriptor("float16", (at + 2, 8)),), attributes={"index": at})


def tensors(pick):
    return tuple(
        Descriptor(pick.choice(DTYPES), (pick.randint(1, 3), pick.choice((-1, 4))))
        for _ in range(pick.choice((1, 1, 1, 2)))
    )


def disguised(graph, seed):
    """The same graph: other names, another order of nodes that do not depend on each other."""
    pick = random.Random(seed)
    names = {node.name: f"other_{number}" for number, node in enumerate(pick.sample(graph.nodes, len(graph.nodes)))}
    waiting = list(graph.nodes)
    done, nodes = set(), []
    while waiting:
        ready = [node for node in waiting if all(edge is None or edge.node in done for edge in node.inputs)]
        node = pick.choice(ready)
        waiting.remove(node)
        done.add(node.name)
        edges = tuple(None if edge is None else Edge(names[edge.node], edge.output) for edge in node.inputs)
        nodes.append(replace(node, name=names[node.name], inputs=edges))
    return Graph(graph.name, tuple(nodes)), names


def operators(graph):
    return [node for node in graph.nodes if node.type not in ("Data", "Const", "NetOutput")]


def changed(graph, node, **fields):
    """The graph with fields of one node changed."""
    return replace(
        graph, nodes=tuple(replace(other, **fields) if other.name == node.name else other for other in graph.nodes)
    )
