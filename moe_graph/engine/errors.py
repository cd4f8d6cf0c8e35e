"""Errors of the host graph engine. Each names the node, its GE type and where it came from."""

from __future__ import annotations


class GraphError(ValueError):
    """A graph that cannot be executed: bytes that are no graph, a cycle, an unknown GE type, a missing input, a wrong input."""


class KernelError(RuntimeError):
    """A kernel failed while the graph ran. The kernel's own error is its cause."""
