"""Passes over the FX graph that torchair lowers, for `CompilerConfig.post_grad_custom_pre_pass`.

Opt-in, where torchair is configured:

    config = torchair.CompilerConfig()
    config.post_grad_custom_pre_pass = moe_graph.passes.un_routing
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from moe_graph.foundation import contract

aten = torch.ops.aten


def un_routing(graph_module: GraphModule, example_inputs: Any = None, config: Any = None) -> None:
    """Replace the way back by a sort with the way back by transposed counts.

    Models put tokens back into source-rank order by the inverse of the gather index, found by a sort:

        y, _, permute_token_idx, _ = npu_moe_re_routing(tokens, counts)
        ...
        back = index_select(y, 0, argsort(permute_token_idx.float()).int())     # also y[argsort(...)]; casts as you like

    The re-routing by `counts.T` gives the same rows: no sort, no casts, and exact for every A (a float32 holds an index exactly up to
    2**24 only). Replaced where y is a matrix of as many rows as were routed, whatever is computed on them in between. What the pass does
    not know stays as it is, for instance a descending sort, or the scatter index (idx_type=1), whose argsort is another permutation.

    `graph_module` is changed in place; `example_inputs` and `config` are torchair's and not used.
    """
    found = [(node, *matched) for node in graph_module.graph.nodes for matched in _ways_back(node)]
    transposed: dict[Any, Node] = {}
    for node, rows, routing in found:
        with graph_module.graph.inserting_before(node):
            counts = routing.args[1]
            if counts not in transposed:
                with graph_module.graph.inserting_after(routing):
                    transposed[counts] = _call(graph_module, aten.permute.default, counts, [1, 0])
            back = _call(graph_module, contract.operator(), rows, transposed[counts])
            node.replace_all_uses_with(_call(graph_module, operator.getitem, back, 0))
    if found:
        graph_module.graph.eliminate_dead_code()
        graph_module.graph.lint()
        graph_module.recompile()


def _ways_back(node: Any) -> Iterator[tuple[Node, Node]]:
    """If `node` is a way back by a sort: the rows it takes, and the routing that it undoes."""
    if node.target is aten.index_select.default:
        rows, dim, index = node.args
    elif node.target is aten.index.Tensor and len(node.args[1]) == 1:
        (rows, (index,)), dim = node.args, 0
    else:
        return
    routing = _routing_of_sorted(index)
    if routing is not None and dim in (0, -2) and _same_rows(rows, routing.args[0]):
        yield rows, routing


def _routing_of_sorted(index: Any) -> Node | None:
    """The routing, if `index` is the argsort of its gather index."""
    index = _before_casts(index)
    if not _is_output(index, 1):
        if index.target is not aten.argsort.default or _argument(index, 1, "dim", -1) not in (0, -1):
            return None
        sort, descending = index, _argument(index, 2, "descending", False)
    elif index.args[0].target is aten.sort.default:
        sort = index.args[0]
        descending = _argument(sort, 2, "descending", False)
    elif index.args[0].target is aten.sort.stable:
        sort = index.args[0]
        descending = sort.kwargs.get("descending", False)
    else:
        return None
    gather = _before_casts(sort.args[0])
    if descending or not _is_output(gather, 2):
        return None
    routing = gather.args[0]
    if routing.target is not contract.operator() or routing.kwargs.get("idx_type", contract.GATHER) != contract.GATHER:
        return None
    return routing


# Casts that keep the order of an index, as far as the model's author could count on it.
_CASTS = frozenset(
    {
        "aten::_to_copy",
        "aten::to",
        "aten::clone",
        "npu::npu_dtype_cast",
        "npu::_npu_dtype_cast",
        "prims::convert_element_type",
    }
)


def _before_casts(node: Any) -> Any:
    while isinstance(node, Node) and _name(node) in _CASTS:
        node = node.args[0]
    return node


def _name(node: Node) -> str:
    return str(node.target._schema.name) if isinstance(node.target, torch._ops.OpOverload) else ""


def _is_output(node: Any, position: int) -> bool:
    return isinstance(node, Node) and node.target is operator.getitem and bool(node.args[1] == position)


def _argument(node: Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _same_rows(rows: Node, tokens: Any) -> bool:
    """Is `rows` a matrix with as many rows as the tokens, by what is known without a new guard?"""
    ours, theirs = rows.meta["val"], tokens.meta["val"]
    if ours.dim() != 2:
        return False
    if isinstance(ours.shape[0], int) and isinstance(theirs.shape[0], int):
        return ours.shape[0] == theirs.shape[0]
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(ours.shape[0] == theirs.shape[0])


def _call(graph_module: GraphModule, target: Any, *args: Any) -> Node:
    """A new node with the fake value that torchair's lowering reads."""
    node = graph_module.graph.call_function(target, args)
    values = torch.utils._pytree.tree_map(lambda arg: arg.meta["val"] if isinstance(arg, Node) else arg, args)
    node.meta["val"] = target(*values)
    return node
