"""Dumps of graphs: read, summarised, drawn, compared. None of it needs an NPU, and nothing in a dump is executed.

    model      a graph as every reader gives it and everything else takes it
"""

from moe_graph.dumps.model import Descriptor, Edge, Graph, Node

__all__ = ["Descriptor", "Edge", "Graph", "Node"]
