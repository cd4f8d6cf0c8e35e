"""One operator call through torch.compile's backend: AOTAutograd, torchair's lowering and, when it is called, the host engine.

Dynamo, which finds the graph in a user's program, is left out: the graph is one call, and Dynamo would take most of the walk's time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map


def lower(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> Callable[..., list[Any]]:
    """Lower `function(*args, **kwargs)` with the installed torchair.

    The returned function takes other tensors in the same places and returns the leaves of the result. All that is no tensor is a constant
    of the graph. `result` is what the call returns in eager; its nesting is that of the graph's outputs. Raises what torch and torchair
    raise where they do not lower the call, and the engine's GraphError.
    """
    import torchair

    leaves, _ = tree_flatten((list(args), dict(kwargs)))
    inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    module = torch.fx.GraphModule({}, _graph(function, args, kwargs, result))
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    compiled = backend(module, inputs)

    def call(*args: Any, **kwargs: Any) -> list[Any]:
        leaves, _ = tree_flatten((list(args), kwargs))
        return list(compiled(*(leaf for leaf in leaves if isinstance(leaf, Tensor))))

    return call


def _graph(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> torch.fx.Graph:
    graph = torch.fx.Graph()
    count = 0

    def placeholder(leaf: Any) -> Any:
        nonlocal count
        if not isinstance(leaf, Tensor):
            return leaf
        count += 1
        return graph.placeholder(f"input_{count}")

    graph_args, graph_kwargs = tree_map(placeholder, (list(args), dict(kwargs)))
    outputs: list[Any] = []

    def collect(node: torch.fx.Node, value: Any) -> None:
        if isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                collect(graph.call_function(operator.getitem, (node, index)), item)
        else:
            outputs.append(node)

    collect(graph.call_function(function, tuple(graph_args), graph_kwargs), result)
    graph.output(tuple(outputs))
    return graph
