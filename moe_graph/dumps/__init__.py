"""Dumps of graphs: read, summarised, drawn, compared. None of it needs an NPU, and nothing in a dump is executed.

model       a graph as every reader gives it and everything else takes it
reading     dumps of every kind, told apart by what they hold
reading_*   what the readers share: text of protobuf, definitions, types, values, what follows from operators
torchair_py, ge_onnx    the two kinds that are no definition of a graph
fx_code     FX graphs as code: what the mode that captures dumps
summary     what a graph holds: inputs, outputs, types, MoE nodes, placements, casts, transposes
diff        two graphs, matched by their structure
html, svg, dot, onnx_file   pictures, and a file for viewers; layout* and page/ are theirs
"""

from moe_graph.dumps.fx_code import from_fx
from moe_graph.dumps.model import Descriptor, Edge, Graph, Node
from moe_graph.dumps.reading import read
from moe_graph.dumps.reading_definition import from_definition
from moe_graph.dumps.reading_errors import DumpError
from moe_graph.dumps.summary import Summary, summarise

__all__ = [
    "Descriptor",
    "DumpError",
    "Edge",
    "Graph",
    "Node",
    "Summary",
    "from_definition",
    "from_fx",
    "read",
    "summarise",
]
