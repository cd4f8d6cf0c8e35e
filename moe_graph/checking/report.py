"""What the checks of a converter found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

PASSED, FAILED, LEFT_OUT = "passed", "failed", "left out"


class Row(NamedTuple):
    """One check.

    Attributes:
        check: what was checked
        sample: of which call; "" of all
        status: "passed", "failed", or "left out": the check before it failed, or it was not asked for
        fault: what is wrong and what to change; "" if it passed
    """

    check: str
    sample: str
    status: str
    fault: str = ""


@dataclass
class ConverterReport:
    """What was checked of one operator's converter.

    Attributes:
        operator: its name with overload, "my_ops.scale_rows.default"
        rows: in the order they were checked
    """

    operator: str
    rows: list[Row] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Did nothing fail?"""
        return not self.faults

    @property
    def faults(self) -> list[Row]:
        """The checks that failed."""
        return [row for row in self.rows if row.status == FAILED]

    def __str__(self) -> str:
        """A line for each check, counted over the samples, and one for each fault."""
        lines = [f"{self.operator}: {'passed' if self.ok else f'{len(self.faults)} faults'}"]
        for check in dict.fromkeys(row.check for row in self.rows):
            rows = [row for row in self.rows if row.check == check]
            counts = [(status, sum(row.status == status for row in rows)) for status in (PASSED, FAILED, LEFT_OUT)]
            lines.append(f"  {check:{_WIDTH}}{', '.join(f'{count} {status}' for status, count in counts if count)}")
        for row in self.faults:
            lines.append(f"  {row.check}{row.sample and f' {row.sample}'}: {row.fault}")
        return "\n".join(lines)


_WIDTH = 22
