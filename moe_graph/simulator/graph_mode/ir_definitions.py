"""What GE's registry would say of an operator: its inputs, outputs and attributes, read from torchair's generated `ge` functions.

torchair carries a function for each of some 1700 GE operators, generated from its REG_OP declaration, which is its docstring.
An operator that is registered in CANN alone is not there, and is answered as not registered.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

_LINE = re.compile(
    r"\.(INPUT|OPTIONAL_INPUT|DYNAMIC_INPUT|OUTPUT|DYNAMIC_OUTPUT|ATTR|REQUIRED_ATTR)\(\s*(\w+)\s*,\s*(\w+)"
)
_KINDS = {
    "INPUT": "required",
    "OPTIONAL_INPUT": "optional",
    "DYNAMIC_INPUT": "dynamic",
    "OUTPUT": "required",
    "DYNAMIC_OUTPUT": "dynamic",
}
_ATTRIBUTE_TYPES = {
    "Int": "VT_INT",
    "int": "VT_INT",
    "Float": "VT_FLOAT",
    "Bool": "VT_BOOL",
    "String": "VT_STRING",
    "Type": "VT_DATA_TYPE",
    "ListInt": "VT_LIST_INT",
    "ListFloat": "VT_LIST_FLOAT",
    "ListBool": "VT_LIST_BOOL",
    "ListString": "VT_LIST_STRING",
    "ListType": "VT_LIST_DATA_TYPE",
    "ListListInt": "VT_LIST_LIST_INT",
    "ListListFloat": "VT_LIST_LIST_FLOAT",
}


class IrDefinition(NamedTuple):
    """The answer torchair expects: "SUCCESS" or "ERROR" (not registered), and pairs of name and kind.

    Kinds of inputs and outputs: "required", "optional", "dynamic". Those of attributes: "VT_INT" and the like.
    """

    status: str
    inputs: list[tuple[str, str]]
    outputs: list[tuple[str, str]]
    attrs: list[tuple[str, str]]


@functools.cache
def ir_definition(op_type: str) -> IrDefinition:
    """The definition of a GE operator type, for instance "MoeReRouting"."""
    from torchair._ge_concrete_graph import auto_generated_ge_raw_ops as generated

    document = getattr(getattr(generated, op_type, None), "__doc__", None) or ""
    if not document.startswith(f"REG_OP({op_type})"):
        return IrDefinition("ERROR", [], [], [])
    inputs, outputs, attrs = [], [], []
    for what, name, kind in _LINE.findall(document):
        if what.endswith("ATTR"):
            attrs.append((name, _ATTRIBUTE_TYPES.get(kind, kind)))
        elif what.endswith("OUTPUT"):
            outputs.append((name, _KINDS[what]))
        else:
            inputs.append((name, _KINDS[what]))
    return IrDefinition("SUCCESS", inputs, outputs, attrs)
