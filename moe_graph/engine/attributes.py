"""Decoding of attributes and constant tensors from protobuf."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_graph.engine import dtypes
from moe_graph.engine.errors import GraphError
from moe_graph.operators.quantization import int4


def decode(attribute: Any) -> Any:
    """An AttrDef as a Python value: str, int, float, bool, list of them, list of lists, or a tensor. Data types stay GE numbers."""
    kind = attribute.WhichOneof("value")
    if kind == "s":
        return attribute.s.decode(errors="replace")
    if kind in ("i", "f", "b", "dt", "bt"):
        return getattr(attribute, kind)
    if kind == "t":
        return tensor(attribute.t)
    if kind == "list":
        return _decode_list(attribute.list)
    if kind == "list_list_int":
        return [list(inner.list_i) for inner in attribute.list_list_int.list_list_i]
    if kind == "list_list_float":
        return [list(inner.list_f) for inner in attribute.list_list_float.list_list_f]
    raise GraphError(f"an attribute of kind {kind!r} is not modelled")


def _decode_list(values: Any) -> list:
    for field in ("i", "f", "b", "dt", "bt"):
        if len(getattr(values, field)):
            return list(getattr(values, field))
    for field in ("td", "t", "g", "na"):
        if len(getattr(values, field)):
            raise GraphError(f"a list attribute of kind {field!r} is not modelled")
    return [s.decode(errors="replace") for s in values.s]


def tensor(definition: Any) -> Tensor:
    """A TensorDef (of a Const) as a tensor. Raises GraphError if dtype and data do not fit the shape."""
    ge_type = dtypes.from_proto(definition.desc.dtype)
    if ge_type is None:
        raise GraphError(f"constant of data type {definition.desc.dtype}, which is not modelled")
    shape = tuple(definition.desc.shape.dim)
    if any(size < 0 for size in shape):
        raise GraphError(f"constant of unknown shape {shape}")
    elements = 1
    for size in shape:
        elements *= size
    expected = (elements * ge_type.bits + 7) // 8
    data = definition.data
    if len(data) != expected:
        raise GraphError(f"constant {ge_type.name} {shape} needs {expected} bytes of data, got {len(data)}")
    if not elements:
        try:
            return torch.empty(shape, dtype=ge_type.torch)
        except RuntimeError as error:  # an empty shape whose other dimensions overflow
            raise GraphError(f"constant {ge_type.name} of impossible shape {shape}") from error
    # A copy: the tensor must outlive the message, and kernels may not find it read-only.
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if ge_type.packed:
        return int4.of_bytes(raw).view(-1)[:elements].view(shape)
    if ge_type.torch is torch.bool:
        return raw.ne(0).view(shape)  # any byte may come, torch's kernels expect 0 or 1
    return raw.view(ge_type.torch).view(shape)
