"""Kernels by family: what GE alone has. Importing this package registers them, and those that `moe_graph.operators` declares.

A kernel is a function, its signature the operator's definition.
"""

from moe_graph import operators
from moe_graph.engine import registry
from moe_graph.engine.kernels import (
    activation,
    collectives,
    comparison,
    convolution,
    convolution_gradient,
    creation,
    elementwise,
    foreach,
    indexing,
    loss,
    matmul,
    max_pooling,
    moe_re_routing,
    movement,
    normalization,
    normalization_gradient,
    padding,
    pooling,
    printing,
    random,
    reduction,
    resize,
    scatter,
    shapes,
    sorting,
    spectral,
    strided,
)

__all__ = [
    "activation",
    "collectives",
    "comparison",
    "convolution",
    "convolution_gradient",
    "creation",
    "elementwise",
    "foreach",
    "indexing",
    "loss",
    "matmul",
    "max_pooling",
    "moe_re_routing",
    "movement",
    "normalization",
    "normalization_gradient",
    "padding",
    "pooling",
    "printing",
    "random",
    "reduction",
    "resize",
    "scatter",
    "shapes",
    "sorting",
    "spectral",
    "strided",
]

for _operator in operators.every().values():
    for _kernel in _operator.ge:
        registry.kernel(_kernel.type, assigns=_kernel.assigns, family=_operator.room)(_kernel.function)
