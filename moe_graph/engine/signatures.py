"""A GE type's definition from its kernel: the signature says the inputs and attributes, the operator's declaration names the outputs."""

from __future__ import annotations

from moe_graph import operators
from moe_graph.definitions.definition import DYNAMIC, OPTIONAL, REQUIRED, Attribute, Definition, Port
from moe_graph.engine import registry

_KINDS = {
    "b": "Bool",
    "i": "Int",
    "f": "Float",
    "s": "String",
    "list": "ListInt",
    "list_list_int": "ListListInt",
    "dt": "Type",
}


def definition_of(ge_type: str) -> Definition | None:
    """Of a type that CANN alone defines and a module of `moe_graph.operators` declares; None of any other."""
    declared = (kernel for operator in operators.every().values() for kernel in operator.ge)
    outputs = next((kernel.outputs for kernel in declared if kernel.type == ge_type), ())
    kernel = registry.get(ge_type)
    if not outputs or kernel is None:
        return None
    return Definition(
        ge_type,
        tuple(Port(i.name, DYNAMIC if i.dynamic else OPTIONAL if i.optional else REQUIRED) for i in kernel.inputs),
        tuple(map(Port, outputs)),
        tuple(
            Attribute(a.name, _KINDS[a.kinds[0]], None if a.required else repr(a.default)) for a in kernel.attributes
        ),
    )
