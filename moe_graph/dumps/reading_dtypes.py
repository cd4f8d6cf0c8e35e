"""GE's data types in torch's words."""

from __future__ import annotations

from moe_graph.engine import dtypes
from moe_graph.engine.errors import GraphError

# GE's names, without "DT_", that torch spells otherwise. The rest differ in case only, or torch has no such type.
_WORDS = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "BF16": "bfloat16",
    "FLOAT8_E8M0": "float8_e8m0fnu",
}


def word(name: str) -> str:
    """ "DT_BF16" -> "bfloat16"; "" for a type the dump leaves open."""
    name = name[3:] if name.startswith("DT_") else name
    return "" if name in ("", "UNDEFINED") else _WORDS.get(name, name.lower())


def word_of_number(number: int) -> str:
    """The data type with this number in GE's enum, which attributes carry (0 is float32). Its number as text if it is not known."""
    try:
        return word(dtypes.from_ge(number).name)
    except GraphError:
        return f"type {number}"
