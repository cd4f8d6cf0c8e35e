"""The host graph engine: executes on the CPU the GE graph that torchair has lowered a model to.

evaluator   load_model(bytes) -> Program, Program.run       graph       parsing and planning
registry    which kernel serves which GE type                kernels/    the kernels, by family
dtypes      GE's data types                                  attributes  attributes and constants
trace       what ran, how long, with which values           compare     FX graph on the CPU against the engine
proto       torchair's protobuf classes                      errors      GraphError, KernelError
"""

from moe_graph.engine.errors import GraphError, KernelError
from moe_graph.engine.evaluator import Program, load_model
from moe_graph.engine.registry import Tensors, kernel

__all__ = ["GraphError", "KernelError", "Program", "Tensors", "kernel", "load_model"]

from moe_graph.engine import kernels  # noqa: E402, F401  registers the kernels; they import the names above
