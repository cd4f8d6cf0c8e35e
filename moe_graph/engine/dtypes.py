"""GE's data types: one table for the two numberings in use and for torch.

Descriptors carry the numbers of the protobuf enum `ge.proto.DataType`; attributes (`dst_type`, `type`, `dtype`) carry those of
GE's C++ enum, which torchair's `DataType` mirrors. Types torch lacks are carried as uint8. Types below a byte (int4, float4) are
carried unpacked, one element per uint8: shapes are then the logical ones, and only Bitcast and constants see the packed form (two
elements a byte, the low half first).
"""

from __future__ import annotations

import torch

from moe_graph.engine.errors import GraphError
from moe_graph.operators.ge import GeType


def _type(name: str, ge: int, proto: int, dtype: str, bits: int | None = None) -> GeType:
    carrier = getattr(torch, dtype, torch.uint8)
    return GeType(name, ge, proto, carrier, bits or torch.empty((), dtype=carrier).element_size() * 8)


TYPES = (
    _type("DT_FLOAT", 0, 1, "float32"),
    _type("DT_FLOAT16", 1, 2, "float16"),
    _type("DT_INT8", 2, 3, "int8"),
    _type("DT_INT32", 3, 7, "int32"),
    _type("DT_UINT8", 4, 4, "uint8"),
    _type("DT_INT16", 6, 5, "int16"),
    _type("DT_UINT16", 7, 6, "uint16"),
    _type("DT_UINT32", 8, 9, "uint32"),
    _type("DT_INT64", 9, 8, "int64"),
    _type("DT_UINT64", 10, 10, "uint64"),
    _type("DT_DOUBLE", 11, 12, "float64"),
    _type("DT_BOOL", 12, 11, "bool"),
    _type("DT_COMPLEX64", 16, 16, "complex64"),
    _type("DT_COMPLEX128", 17, 17, "complex128"),
    _type("DT_QINT8", 18, 18, "int8"),
    _type("DT_QINT16", 19, 19, "int16"),
    _type("DT_QINT32", 20, 20, "int32"),
    _type("DT_QUINT8", 21, 21, "uint8"),
    _type("DT_BF16", 27, 27, "bfloat16"),
    _type("DT_INT4", 29, 28, "uint8", 4),
    _type("DT_COMPLEX32", 33, 32, "complex32", 32),  # given: asking torch for its width warns
    _type("DT_HIFLOAT8", 34, 33, "uint8"),
    _type("DT_FLOAT8_E5M2", 35, 34, "float8_e5m2"),
    _type("DT_FLOAT8_E4M3FN", 36, 35, "float8_e4m3fn"),
    _type("DT_FLOAT8_E8M0", 37, 36, "float8_e8m0fnu"),
    _type("DT_FLOAT4_E2M1", 40, 39, "uint8", 4),
    _type("DT_FLOAT4_E1M2", 41, 40, "uint8", 4),
)
_BY_GE = {t.ge: t for t in TYPES}
_BY_PROTO = {t.proto: t for t in TYPES}
TOLD_AS_BYTES = frozenset(t.ge for t in TYPES if t.told_as_bytes)
"""Numbers, in GE's enum, of the types that FX has for uint8."""


def from_ge(number: int) -> GeType:
    """The type with this number in GE's enum (attributes)."""
    if not isinstance(number, int) or number not in _BY_GE:
        raise GraphError(f"GE data type {number} (of an attribute) is not modelled; known: {sorted(_BY_GE)}")
    return _BY_GE[number]


def from_proto(number: int) -> GeType | None:
    """The type with this number in the protobuf enum (descriptors); None if the descriptor leaves it open or it is not modelled."""
    return _BY_PROTO.get(number)
