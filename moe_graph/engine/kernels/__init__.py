"""Kernels by family. Importing this package registers them all; a kernel is a function, its signature the operator's definition."""

from moe_graph.engine.kernels import elementwise, indexing, matmul, moe, movement, reduction, shapes

__all__ = ["elementwise", "indexing", "matmul", "moe", "movement", "reduction", "shapes"]
