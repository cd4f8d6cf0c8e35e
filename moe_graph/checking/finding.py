"""One thing that a check found."""

from __future__ import annotations

from typing import NamedTuple

ERROR, NOTE = "error", "note"


class Finding(NamedTuple):
    """What is wrong with a node.

    Attributes:
        severity: "error": GE would refuse it; "note": it may, the definition does not allow it but may lag behind CANN
        node: its name, with its type
        text: what is wrong, and what is allowed
        source: the line of the model; "" if the dump does not say
    """

    severity: str
    node: str
    text: str
    source: str = ""

    def __str__(self) -> str:
        return f"{self.severity}: {self.node}: {self.text}" + (f"\n  {self.source}" if self.source else "")
