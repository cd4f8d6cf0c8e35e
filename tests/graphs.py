"""Builds serialized GE graphs (ModelDef) node by node, as torchair hands them to GE."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine import dtypes, proto

PROTO_NUMBERS = {t.name: t.proto for t in dtypes.TYPES}
_BY_TORCH = {t.torch: t.name for t in reversed(dtypes.TYPES)}  # the first type that a torch dtype carries


def ge_name(dtype: torch.dtype | str | None) -> str | None:
    """Name of the GE type of a torch dtype; a name is returned as it is."""
    return _BY_TORCH[dtype] if isinstance(dtype, torch.dtype) else dtype


class Type(int):
    """An attribute value that is a GE data type, by its number in GE's enum."""


class Graph:
    """A graph under construction. The methods that add a node return a reference to its first output, "name:0"."""

    def __init__(self, name: str = "graph") -> None:
        self.model = proto.messages().ModelDef()
        self.graph = self.model.graph.add()
        self.graph.name = name
        self._inputs = 0

    def op(self, type: str, name: str | None = None):
        """A bare node."""
        made = self.graph.op.add()
        made.type = type
        made.name = f"{type}_{len(self.graph.op)}" if name is None else name
        return made

    def data(self, dtype=torch.float32, shape=(3,), name=None, index=None) -> str:
        """An input of the graph; by default the next."""
        made = self.op("Data", name)
        describe(made.output_desc.add(), "y", dtype, shape)
        made.attr["index"].i = self._inputs if index is None else index
        self._inputs += 1
        return f"{made.name}:0"

    def const(self, value, dtype=None, name=None, data=None, shape=None) -> str:
        """A constant; `dtype` (a GE name), `data` and `shape` override what the tensor would give."""
        value = torch.as_tensor(value)
        made = self.op("Const", name)
        content = made.attr["value"].t
        for desc in (content.desc, made.output_desc.add()):
            describe(desc, "y", value.dtype if dtype is None else dtype, value.shape if shape is None else shape)
        content.data = as_bytes(value) if data is None else data
        return f"{made.name}:0"

    def node(self, type: str, *, outputs=("y",), controls=(), name=None, attrs=None, fx_name=None, **inputs) -> str:
        """An operator. `inputs` maps GE input names to references ("" unfed). `outputs` are names or (name, dtype) pairs."""
        made = self.op(type, name)
        for key, reference in inputs.items():
            made.input.append(reference)
            made.input_desc.add().name = key
        made.input.extend(f"{control.partition(':')[0]}:-1" for control in controls)
        for output in outputs:
            output, dtype = output if isinstance(output, tuple) else (output, None)
            describe(made.output_desc.add(), output, dtype, ())
        if fx_name is not None:
            made.output_desc[0].attr["_fx_tensor_name"].s = fx_name.encode()
        for key, value in (attrs or {}).items():
            set_attr(made.attr[key], value)
        return f"{made.name}:0"

    def output(self, *references: str, controls=()) -> Graph:
        """NetOutput."""
        made = self.op("NetOutput", "NetOutput")
        for at, reference in enumerate(references):
            made.input.append(reference)
            made.input_desc.add().name = f"input{at}"
        made.input.extend(f"{control.partition(':')[0]}:-1" for control in controls)
        return self

    def serialized(self) -> bytes:
        """The ModelDef as bytes."""
        return self.model.SerializeToString()


def describe(desc, name, dtype, shape) -> None:
    """Fill a TensorDescriptor. `dtype`: torch dtype, GE name, number of the protobuf enum, or None (left open)."""
    dtype = ge_name(dtype)
    desc.name = name
    desc.dtype = 0 if dtype is None else PROTO_NUMBERS.get(dtype, dtype)
    desc.shape.dim.extend(shape)


def set_attr(attr, value) -> None:
    """Fill an AttrDef by the kind of the Python value."""
    if isinstance(value, bool):
        attr.b = value
    elif isinstance(value, Type):
        attr.dt = value
    elif isinstance(value, int):
        attr.i = value
    elif isinstance(value, float):
        attr.f = value
    elif isinstance(value, str):
        attr.s = value.encode()
    elif isinstance(value, Tensor):
        describe(attr.t.desc, "t", value.dtype, value.shape)
        attr.t.data = as_bytes(value)
    elif isinstance(value, list) and all(isinstance(inner, list) for inner in value) and value:
        for inner in value:
            attr.list_list_int.list_list_i.add().list_i.extend(inner)
    elif isinstance(value, list):
        attr.list.SetInParent()
        kind = (
            "b" if isinstance(value[0], bool) else {int: "i", float: "f", bytes: "s"}[type(value[0])] if value else "i"
        )
        getattr(attr.list, kind).extend(value)
    else:
        raise TypeError(f"no kind of attribute for {value!r}")


def as_bytes(value: Tensor) -> bytes:
    """The elements of a tensor as they lie in memory."""
    return bytes(value.contiguous().view(-1).view(torch.uint8).tolist()) if value.numel() else b""
