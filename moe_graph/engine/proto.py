"""torchair's protobuf classes of the GE IR, without importing torchair or torch_npu where they are not loaded."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from moe_graph.engine.errors import GraphError

_LOADED = "torchair._ge_concrete_graph.ge_ir_pb2"
_FILE = Path("dynamo", "torchair", "_ge_concrete_graph", "ge_ir_by_protoc_3_19_pb2.py")


@functools.cache
def messages() -> ModuleType:
    """The module with `ModelDef`, `GraphDef`, `OpDef`, ...: torchair's own if it is loaded, else read from the installed wheel."""
    if _LOADED in sys.modules:
        return sys.modules[_LOADED]
    wheel = importlib.util.find_spec("torch_npu")
    if wheel is None or wheel.origin is None:
        raise GraphError("reading a GE graph needs torchair's protobuf description: install torch_npu")
    path = Path(wheel.origin).parent / _FILE
    spec = importlib.util.spec_from_file_location("moe_graph_ge_ir_pb2", path)
    if spec is None or not path.exists():
        raise GraphError(f"the installed torch_npu has no {_FILE}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
