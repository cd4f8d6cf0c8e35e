"""What lies inside a definition: attributes, tensors of constants, descriptors of outputs."""

from __future__ import annotations

import hashlib
import re
import struct
from typing import Any

from moe_graph.dumps.model import Descriptor
from moe_graph.dumps.reading_dtypes import BY_NAME, GeType, word
from moe_graph.dumps.reading_errors import DumpError
from moe_graph.dumps.reading_text import Message

DEEPEST = 100  # messages in each other that an attribute may hold
LARGEST = 64  # elements of a constant that are kept as values; a larger one is kept as text
_FX_TENSOR = re.compile(r"Tensor\(dtype=torch\.(\w+), shape=torch\.Size\(\[(.*)\]\)")
_FX_SYMBOLS = {"SymInt": "int64", "SymFloat": "float64", "SymBool": "bool"}
_FX_SYMBOL = re.compile(r"<class 'torch\.(Sym\w+)'>")
_BUILT_IN = re.compile(r"<built-in function (\w+)>")
# The letters of Python's struct. bfloat16 has none.
_STRUCT = {
    "float16": "e", "float32": "f", "float64": "d", "bool": "?", "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
    "int8": "b", "int16": "h", "int32": "i", "int64": "q",
}  # fmt: skip
_LISTS = ("s", "i", "f", "b", "bt", "dt", "t", "td", "g", "na")


def text(value: Any) -> str:
    """Quoted text or an identifier as str."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def first(message: Message, field: str, default: Any = None) -> Any:
    """The last value of a field, as protobuf reads a field that may occur once; `default` if it does not occur."""
    values = message.get(field)
    return values[-1] if values else default


def entries(message: Message, field: str) -> dict[str, Message]:
    """A map from text to messages."""
    return {text(first(entry, "key", "")): first(entry, "value", {}) for entry in message.get(field, ())}


def attribute(value: Message) -> Any:
    """An AttrDef as a Python value: str, number, bool, None, a list of them, a list of lists, or a tensor's elements."""
    if "list" in value:
        values = first(value, "list")
        field = next((field for field in _LISTS if field in values), "")
        return [_scalar(field, element) for element in values.get(field, ())]
    for field, inner, leaf in (
        ("list_list_int", "list_list_i", "list_i"),
        ("list_list_float", "list_list_f", "list_f"),
    ):
        if field in value:
            rows = first(value, field).get(inner, ())
            return [[_scalar(leaf[-1], element) for element in row.get(leaf, ())] for row in rows]
    for field in value:
        return _scalar(field, first(value, field))
    return None


def _scalar(field: str, value: Any) -> Any:
    if field == "b":
        return value in ("true", "True", "t", 1, True)
    if field == "f" and isinstance(value, int):
        return float(value)  # text writes 1.0 as 1
    if field == "bt" and isinstance(value, bytes):
        return value.hex()
    if field == "t":
        return tensor(value)
    return _plain(value)


def _plain(value: Any, depth: int = 0) -> Any:
    if isinstance(value, dict):
        if depth == DEEPEST:
            raise DumpError(f"an attribute is nested more than {DEEPEST} deep")
        return {field: [_plain(element, depth + 1) for element in values] for field, values in value.items()}
    return text(value) if isinstance(value, bytes) else value


def tensor(definition: Message) -> Any:
    """A TensorDef's elements, nested as its shape says; as text (type, shape, digest of the data) if it is large or not to be decoded."""
    desc = first(definition, "desc", {})
    name = text(first(desc, "dtype", "DT_UNDEFINED"))
    shape = known_shape(first(desc, "shape", {}).get("dim", ())) or ()
    data = first(definition, "data", b"")
    data = data if isinstance(data, bytes) else b""
    ge_type, count = BY_NAME.get(name), 1
    for size in shape:
        count *= size
    if (
        ge_type is not None
        and 0 <= count <= LARGEST
        and len(data) * 8 == count * ge_type.bits
        and (ge_type.torch_name in _STRUCT or ge_type.torch is not None)
    ):
        return elements(data, ge_type, shape)
    digest = hashlib.sha256(data).hexdigest()[:12]
    return f"{Descriptor(word(name), shape)} of {len(data)} bytes, sha256 {digest}"


def elements(data: bytes, ge_type: GeType, shape: tuple[int, ...]) -> Any:
    """A tensor's bytes as nested lists. The usual types are read without torch."""
    if not data:
        return []
    if ge_type.torch_name in _STRUCT:
        code = _STRUCT[ge_type.torch_name]
        return _nested(list(struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data)), shape)
    dtype = ge_type.torch
    import torch

    assert dtype is not None, "asked by the caller"
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype)
    if not dtype.is_complex and dtype.is_floating_point:
        raw = raw.float()  # 8-bit floats have no tolist
    if dtype.is_complex:
        return [str(value) for value in raw.to(torch.complex64).tolist()]
    return raw.view(shape).tolist()


def _nested(values: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return values[0]
    if len(shape) == 1:
        return values
    step = len(values) // shape[0]
    return [_nested(values[at : at + step], shape[1:]) for at in range(0, len(values), step)]


def descriptor(desc: Message) -> Descriptor:
    """A TensorDescriptor.

    torchair leaves the shape of what it has lowered to GE's inference. It notes the FX tensor's instead, the last view of it where
    the model reshapes it and torchair puts the reshape off: same elements, another shape. Where it notes nothing, the type is unknown
    as well: the optimizer writes DT_FLOAT into every descriptor that has none.
    """
    notes = entries(desc, "attr")
    dtype = word(text(first(desc, "dtype", "")))
    device = text(first(desc, "device_type", ""))
    layout = text(first(desc, "layout", ""))
    if "shape" in desc:
        return Descriptor(dtype, known_shape(first(desc, "shape").get("dim", ())), layout, device)
    noted = fx_meta(text(first(notes.get("_meta", {}), "s", b"")))
    if noted is None:
        return Descriptor("" if dtype == "float32" else dtype, None, layout, device)
    return Descriptor(dtype or noted.dtype, noted.shape, layout, device)


def known_shape(sizes: Any) -> tuple[int, ...] | None:
    """GE's dimensions: -1 for an unknown size; -2 alone says that the rank is unknown."""
    sizes = tuple(sizes)
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int):
            raise DumpError(f"a size of a shape must be a whole number, got {text(size)!r}")
    return None if sizes == (-2,) else tuple(-1 if size < 0 else size for size in sizes)


def fx_meta(note: str) -> Descriptor | None:
    """torchair's note of an FX value: a tensor's type and sizes, symbols as -1; a symbolic number as a scalar."""
    match = _FX_TENSOR.match(note)
    if match is not None:
        return Descriptor(match[1], fx_sizes(match[2]))
    match = _FX_SYMBOL.match(note)
    return Descriptor(_FX_SYMBOLS[match[1]], ()) if match is not None and match[1] in _FX_SYMBOLS else None


def fx_sizes(sizes: str) -> tuple[int, ...]:
    """ "4, s0, Max(1, s1)" -> (4, -1, -1)"""
    parts, depth = [""], 0
    for letter in sizes:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    parts = [part.strip() for part in parts]
    return tuple(int(part) if part.isdigit() else -1 for part in parts if part)


def fx_note(desc: Message) -> str:
    """The FX node that torchair notes on an output."""
    return fx_name(text(first(entries(desc, "attr").get("_fx_tensor_name", {}), "s", b"")))


def fx_name(note: str) -> str:
    """torchair's note of an FX tensor, "add-aten.add.Tensor.OUTPUT.0", as "add: aten.add.Tensor"; "" without one."""
    name, _, target = note.partition("-")
    target = target.rpartition(".OUTPUT.")[0] or target
    built_in = _BUILT_IN.fullmatch(target)
    target = f"operator.{built_in[1]}" if built_in else target
    return f"{name}: {target}" if target else name
