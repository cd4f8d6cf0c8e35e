"""One file of GE's data dump: what an operator read and what it computed.

A file holds the length of its header (uint64, little endian), the header (a `toolkit.dumpdata.DumpData` of protobuf), then the bytes
of the inputs and of the outputs, in this order, packed as they lie in memory. Numbers of types are those of GE's protobuf enum, of
formats those of torch_npu (2: ND). Source: the protobuf description and the reader that msprobe publishes (resource/dump_data.proto,
msaccucmp's BigDumpDataParser).
"""

from __future__ import annotations

import functools
import math
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
from torch import Tensor

from moe_graph.engine import dtypes
from moe_graph.operators.ge import GeType
from moe_graph.operators.quantization import int4

ND = 2
_LENGTH = struct.Struct("<Q")
_PACKAGE = "toolkit.dumpdata"
# What of the messages is written or read here: field, number, type ("*": repeated). Others are skipped.
_TENSOR = (("data_type", 1, "int32"), ("format", 2, "int32"), ("shape", 3, "Shape"))
_MESSAGES = {
    "Shape": (("dim", 1, "uint64*"),),
    "OpOutput": (*_TENSOR, ("size", 6, "uint64"), ("original_shape", 7, "Shape")),
    "OpInput": (*_TENSOR, ("size", 5, "uint64"), ("original_shape", 6, "Shape")),
    "DumpData": (
        ("version", 1, "string"),
        ("dump_time", 2, "uint64"),
        ("output", 3, "OpOutput*"),
        ("input", 4, "OpInput*"),
        ("op_name", 6, "string"),
    ),
}


class DataDumpError(ValueError):
    """A file is no data dump of GE's, or holds what is not read here. The message names the file."""


class Typed(NamedTuple):
    """A tensor as the engine carries it, and its GE type: what tells int4 from uint8."""

    value: Tensor
    type: GeType | None = None


class Stored(NamedTuple):
    """A tensor of a file.

    value: on the CPU; None if its type or format is not read here, or no values were stored
    described: type, shape and format in words
    """

    value: Tensor | None
    described: str


class Dumped(NamedTuple):
    """What a file holds: the operator's name and its tensors."""

    name: str
    inputs: list[Stored]
    outputs: list[Stored]


def write(path: Path, name: str, inputs: Sequence[Typed], outputs: Sequence[Typed]) -> None:
    """Write an operator's file; an optional input that is not given is left out, as GE leaves it out.

    Raises DataDumpError for a tensor whose dtype GE has no number for.
    """
    header = _classes()["DumpData"](version="2.0", dump_time=time.time_ns() // 1000, op_name=name)
    data = b"".join(_added(header.input, one, path) for one in inputs)
    data += b"".join(_added(header.output, one, path) for one in outputs)
    serialized = header.SerializeToString()
    path.write_bytes(_LENGTH.pack(len(serialized)) + serialized + data)


def read(path: Path) -> Dumped:
    """Read an operator's file. Raises DataDumpError if it is none, OSError if it cannot be read."""
    content = path.read_bytes()
    header = _classes()["DumpData"]()
    try:
        (length,) = _LENGTH.unpack_from(content)
        header.ParseFromString(content[_LENGTH.size : _LENGTH.size + length])
    except (struct.error, message.DecodeError) as error:
        raise DataDumpError(f"{path}: not a file of GE's data dump ({error})") from error
    at = _LENGTH.size + length
    if len(content) < at + sum(one.size for one in (*header.input, *header.output)):
        raise DataDumpError(f"{path}: the file ends before its tensors do")
    groups = []
    for descriptions in (header.input, header.output):
        groups.append([])
        for described in descriptions:
            groups[-1].append(_stored(described, content[at : at + described.size], path))
            at += described.size
    return Dumped(header.op_name, *groups)


def _added(descriptions: Any, tensor: Typed, path: Path) -> bytes:
    """Describe one more tensor; what is returned are its bytes."""
    described = descriptions.add(format=ND)
    value = tensor.value.detach().cpu()
    known = tensor.type or next((one for one in dtypes.TYPES if one.torch == value.dtype and not one.packed), None)
    if known is None:
        raise DataDumpError(f"{path}: GE has no number for {value.dtype}")
    flat = value.reshape(-1)
    if known.packed:
        flat = int4.in_bytes(torch.nn.functional.pad(flat, (0, flat.numel() % 2)))
    data = flat.view(torch.uint8).numpy().tobytes()
    described.data_type, described.size = known.proto, len(data)
    described.shape.dim.extend(value.shape)
    described.original_shape.dim.extend(value.shape)
    return data


def _stored(described: Any, data: bytes, path: Path) -> Stored:
    shape, known = tuple(described.shape.dim), dtypes.from_proto(described.data_type)
    name = known.name if known else f"type {described.data_type}"
    words = f"{name} {list(shape)}" + ("" if described.format == ND else f" in format {described.format}")
    if known is None or not data and math.prod(shape):
        return Stored(None, words)
    if shape != tuple(described.original_shape.dim) and described.original_shape.dim:
        return Stored(None, f"{words} of {list(described.original_shape.dim)}")
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    flat = int4.of_bytes(flat) if known.packed else flat.view(known.torch)
    if flat.numel() < math.prod(shape):
        raise DataDumpError(f"{path}: {words} has {len(data)} bytes")
    return Stored(flat[: math.prod(shape)].reshape(shape), words)  # a device may store what it has padded


@functools.cache
def _classes() -> dict[str, Any]:
    """The classes of the messages, in a pool of their own: msprobe and CANN bring descriptions of the same names."""
    file = descriptor_pb2.FileDescriptorProto(name="moe_graph_dump_data.proto", package=_PACKAGE, syntax="proto3")
    field_type = descriptor_pb2.FieldDescriptorProto
    for name, fields in _MESSAGES.items():
        made = file.message_type.add(name=name)
        for field, number, kind in fields:
            label = field_type.LABEL_REPEATED if kind.endswith("*") else field_type.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            one = made.field.add(name=field, number=number, label=label)
            if kind in _MESSAGES:
                one.type, one.type_name = field_type.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                one.type = getattr(field_type, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }
