"""Graphs to draw."""

from __future__ import annotations

from moe_graph.dumps.model import Descriptor, Edge, Graph, Node

HALF = Descriptor("bfloat16", (-1, 256), "ND", "NPU")
WHOLE = Descriptor("int64", (), "ND")
SIZES = Descriptor("int64", None, "ND")


def routing() -> Graph:
    """The example's: three inputs, the operator, the outputs."""
    data = [
        Node(f"arg{at}_1", "Data", outputs=(tensor,), attributes={"index": at})
        for at, tensor in enumerate(
            (
                Descriptor("int8", (16384, 7168), "ND", "NPU"),
                Descriptor("int32", (16, 16), "ND", "NPU"),
                Descriptor("float32", (16384,), "ND", "NPU"),
            )
        )
    ]
    outputs = tuple(
        Descriptor(dtype, shape)
        for dtype, shape in (("int8", (16384, 7168)), ("float32", (16384,)), ("int32", (16384,)), ("int32", (16,)))
    )
    routing = Node(
        "MoeReRouting",
        "MoeReRouting",
        tuple(Edge(node.name) for node in data),
        ("tokens", "expert_token_num_per_rank", "per_token_scales"),
        outputs,
        {"expert_token_num_type": 1, "idx_type": 0},
        ("graph_mode.py:27 in forward",),
        "npu_moe_re_routing: npu.npu_moe_re_routing.default",
    )
    output = Node("NetOutput", "NetOutput", tuple(Edge(routing.name, at) for at in range(4)), outputs=outputs)
    return Graph("graph_1", (*data, routing, output), "pbtxt", "original")


def layers(count: int) -> Graph:
    """A stack of layers that each route, compute and route back; with constants and arithmetic on sizes. 25 nodes a layer."""
    nodes = [Node("x", "Data", outputs=(HALF,), attributes={"index": 0})]
    last = "x"
    for layer in range(count):
        last = _layer(nodes, f"layer{layer}", last)
    nodes.append(Node("NetOutput", "NetOutput", (Edge(last),), outputs=(HALF,)))
    return Graph(f"layers_{count}", tuple(nodes), "txt")


def _layer(nodes: list[Node], prefix: str, x: str) -> str:
    def add(name: str, type_: str, *inputs: str | Edge | None, gives: tuple[Descriptor, ...] = (HALF,), **attributes):
        edges = tuple(Edge(f"{prefix}/{one}") if isinstance(one, str) else one for one in inputs)
        source = () if type_ in ("Const", "Data") else (f"model.py:{100 + len(nodes) % 25} in forward",)
        nodes.append(Node(f"{prefix}/{name}", type_, edges, (), gives, attributes, source))

    add("weight", "Data", gives=(Descriptor("bfloat16", (8, 256), "ND", "NPU"),), index=len(nodes))
    add("gate", "MatMulV2", Edge(x), "weight", transpose_x2=True)
    add("softmax", "SoftmaxV2", "gate", axes=[-1])
    add("k", "Const", gives=(WHOLE,), value=2)
    add("topk", "TopKV2", "softmax", "k", gives=(HALF, SIZES))
    add("keys", "Cast", Edge(f"{prefix}/topk", 1), dst_type=9)
    add("sort", "Sort", "keys", gives=(SIZES, SIZES))
    add("counts", "Histogram", "sort", gives=(Descriptor("int32", (4, 8)),))
    add("gather", "GatherV2", Edge(x), Edge(f"{prefix}/sort", 1))
    add("routing", "MoeReRouting", "gather", "counts", None, gives=(HALF, HALF, SIZES, SIZES), idx_type=0)
    add("up_weight", "Data", gives=(Descriptor("bfloat16", (8, 256, 512), "ND", "NPU"),), index=len(nodes))
    add("up", "GroupedMatmul", "routing", "up_weight", Edge(f"{prefix}/routing", 3))
    add("swish", "Swish", "up")
    add("down_weight", "Data", gives=(Descriptor("bfloat16", (8, 512, 256), "ND", "NPU"),), index=len(nodes))
    add("down", "GroupedMatmul", "swish", "down_weight", Edge(f"{prefix}/routing", 3))
    add("back", "MoeReRouting", "down", "counts", None, gives=(HALF, HALF, SIZES, SIZES), idx_type=0)
    add("sizes", "Shape", Edge(x), gives=(SIZES,))
    add("zero", "Const", gives=(WHOLE,), value=0)
    add("rows", "Gather", "sizes", "zero", gives=(WHOLE,))
    add("minus", "Const", gives=(WHOLE,), value=-1)
    add("shape", "Pack", "rows", "k", "minus", gives=(SIZES,))
    add("view", "Reshape", "back", "shape")
    add("weighted", "Mul", "view", "topk")
    add("sum", "ReduceSum", "weighted", "zero", keep_dims=False)
    add("residual", "Add", Edge(x), "sum")
    return f"{prefix}/residual"
