"""What GE's registry would say of an operator: its inputs, outputs and attributes, read from torchair's generated `ge` functions.

torchair carries a function for each of some 1700 GE operators, generated from its REG_OP declaration, which is its docstring.
Of an operator that CANN alone knows the definition is what `moe_graph.operators` declares of it: its kernel's signature and the names of
its outputs. What neither has is answered as not registered.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from moe_graph import operators
from moe_graph.engine import registry

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


_TYPE_OF_KIND = {
    "b": "VT_BOOL",
    "i": "VT_INT",
    "f": "VT_FLOAT",
    "s": "VT_STRING",
    "list": "VT_LIST_INT",
    "dt": "VT_DATA_TYPE",
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

    document = (getattr(getattr(generated, op_type, None), "__doc__", None) or "").lstrip()
    if not document.startswith(f"REG_OP({op_type})"):
        return _declared(op_type)
    inputs, outputs, attrs = [], [], []
    for what, name, kind in _LINE.findall(document):
        if what.endswith("ATTR"):
            attrs.append((name, _ATTRIBUTE_TYPES.get(kind, kind)))
        elif what.endswith("OUTPUT"):
            outputs.append((name, _KINDS[what]))
        else:
            inputs.append((name, _KINDS[what]))
    return IrDefinition("SUCCESS", inputs, outputs, attrs)


def _declared(op_type: str) -> IrDefinition:
    """What the operator's own module says of it."""
    declared = (kernel for operator in operators.every().values() for kernel in operator.ge)
    outputs = next((kernel.outputs for kernel in declared if kernel.type == op_type), ())
    kernel = registry.get(op_type)
    if not outputs or kernel is None:
        return IrDefinition("ERROR", [], [], [])
    inputs = [(i.name, "dynamic" if i.dynamic else "optional" if i.optional else "required") for i in kernel.inputs]
    attributes = [(a.name, _TYPE_OF_KIND[a.kinds[0]]) for a in kernel.attributes]
    return IrDefinition("SUCCESS", inputs, [(name, "required") for name in outputs], attributes)
