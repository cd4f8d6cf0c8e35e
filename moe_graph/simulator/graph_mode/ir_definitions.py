"""What GE's registry would answer torchair of an operator type.

The definition is the one declared (`moe_graph.plugins.define`), else torchair's own text of it; of an operator that CANN alone knows, it is
what `moe_graph.operators` declares: its kernel's signature and the names of its outputs. What none of them has is not registered.
"""

from __future__ import annotations

from typing import NamedTuple

from moe_graph.definitions import known
from moe_graph.definitions.definition import ATTRIBUTE_KINDS
from moe_graph.engine import signatures


class IrDefinition(NamedTuple):
    """The answer torchair expects: "SUCCESS" or "ERROR" (not registered), and pairs of name and kind.

    Kinds of inputs and outputs: "required", "optional", "dynamic". Those of attributes: "VT_INT" and the like.
    """

    status: str
    inputs: list[tuple[str, str]]
    outputs: list[tuple[str, str]]
    attrs: list[tuple[str, str]]


def ir_definition(op_type: str) -> IrDefinition:
    """The definition of a GE operator type, for instance "MoeReRouting"."""
    definition = known.find(op_type) or signatures.definition_of(op_type)
    if definition is None:
        return IrDefinition("ERROR", [], [], [])
    return IrDefinition(
        "SUCCESS",
        [(port.name, port.kind) for port in definition.inputs],
        [(port.name, port.kind) for port in definition.outputs],
        [(attribute.name, ATTRIBUTE_KINDS[attribute.kind]) for attribute in definition.attributes],
    )
