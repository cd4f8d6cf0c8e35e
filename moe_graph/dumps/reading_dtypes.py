"""GE's data types in torch's words.

The numbers are those of GE's C++ enum, which attributes carry. `moe_graph.engine.dtypes` has the same table with more to it; importing the
engine needs protobuf, and reading a dump does not (a test holds the two together).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GeType:
    """GE's name and number of a type, its name in torch ("" if torch has none), its width in bits."""

    name: str
    number: int
    torch_name: str
    bits: int

    @property
    def torch(self) -> torch.dtype | None:
        """torch's dtype; None if this torch has none. Imports torch: most of what is asked of a dump needs none."""
        from moe_graph.foundation import torch_import  # noqa: F401
        import torch  # isort: skip

        return getattr(torch, self.torch_name, None) if self.torch_name else None

    @property
    def word(self) -> str:
        """torch's name, or GE's in lower case."""
        return self.torch_name or self.name[3:].lower()


TYPES = (
    GeType("DT_FLOAT", 0, "float32", 32),
    GeType("DT_FLOAT16", 1, "float16", 16),
    GeType("DT_INT8", 2, "int8", 8),
    GeType("DT_INT32", 3, "int32", 32),
    GeType("DT_UINT8", 4, "uint8", 8),
    GeType("DT_INT16", 6, "int16", 16),
    GeType("DT_UINT16", 7, "uint16", 16),
    GeType("DT_UINT32", 8, "uint32", 32),
    GeType("DT_INT64", 9, "int64", 64),
    GeType("DT_UINT64", 10, "uint64", 64),
    GeType("DT_DOUBLE", 11, "float64", 64),
    GeType("DT_BOOL", 12, "bool", 8),
    GeType("DT_COMPLEX64", 16, "complex64", 64),
    GeType("DT_COMPLEX128", 17, "complex128", 128),
    GeType("DT_QINT8", 18, "", 8),
    GeType("DT_QINT16", 19, "", 16),
    GeType("DT_QINT32", 20, "", 32),
    GeType("DT_QUINT8", 21, "", 8),
    GeType("DT_BF16", 27, "bfloat16", 16),
    GeType("DT_INT4", 29, "", 4),
    GeType("DT_COMPLEX32", 33, "complex32", 32),
    GeType("DT_HIFLOAT8", 34, "", 8),
    GeType("DT_FLOAT8_E5M2", 35, "float8_e5m2", 8),
    GeType("DT_FLOAT8_E4M3FN", 36, "float8_e4m3fn", 8),
    GeType("DT_FLOAT8_E8M0", 37, "float8_e8m0fnu", 8),
    GeType("DT_FLOAT4_E2M1", 40, "", 4),
    GeType("DT_FLOAT4_E1M2", 41, "", 4),
)
BY_NAME = {t.name: t for t in TYPES}
BY_NUMBER = {t.number: t for t in TYPES}
BY_WORD = {t.word: t for t in TYPES}


def word(name: str) -> str:
    """ "DT_BF16" -> "bfloat16"; "" for a type the dump leaves open; a type that is not in the table in lower case."""
    found = BY_NAME.get(name if name.startswith("DT_") else f"DT_{name}")
    if found is not None:
        return found.word
    name = name[3:] if name.startswith("DT_") else name
    return "" if name == "UNDEFINED" else name.lower()


def word_of_number(number: object) -> str:
    """The type with this number in GE's enum (0 is float32). The number as text if it is not known."""
    found = BY_NUMBER.get(number) if isinstance(number, int) else None
    return f"type {number}" if found is None else found.word
