"""What GE's registry says of an operator type."""

from __future__ import annotations

from dataclasses import dataclass

REQUIRED, OPTIONAL, DYNAMIC = "required", "optional", "dynamic"
PORT_KINDS = (REQUIRED, OPTIONAL, DYNAMIC)
# GE's word for an attribute's kind -> torchair's.
ATTRIBUTE_KINDS = {
    "Int": "VT_INT",
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


@dataclass(frozen=True)
class Port:
    """An input or an output.

    Attributes:
        name: GE's
        kind: "required", "optional" or "dynamic" (a list: x0, x1, ...)
        dtypes: GE's names of the data types it takes ("DT_FLOAT16"); empty: the definition does not say
    """

    name: str
    kind: str = REQUIRED
    dtypes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in PORT_KINDS:
            raise ValueError(f"{self.name}: kind must be one of {', '.join(PORT_KINDS)}, got {self.kind!r}")


@dataclass(frozen=True)
class Attribute:
    """An attribute.

    Attributes:
        name: GE's
        kind: "Int", "Float", "Bool", "String", "Type" (a data type), or "List..." of them
        default: as the definition writes it; None: it must be given
    """

    name: str
    kind: str
    default: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ATTRIBUTE_KINDS:
            raise ValueError(f"{self.name}: kind must be one of {', '.join(ATTRIBUTE_KINDS)}, got {self.kind!r}")

    @property
    def required(self) -> bool:
        """Must it be given?"""
        return self.default is None


@dataclass(frozen=True)
class Definition:
    """A GE operator type.

    Attributes:
        type: its name, "ScaleRows"
        inputs: in GE's order
        outputs: in GE's order
        attributes: in GE's order
    """

    type: str
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    attributes: tuple[Attribute, ...] = ()
