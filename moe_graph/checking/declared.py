"""A check that a module declares, for `moe-graph check` and for its tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moe_graph.checking.converter import check_converter
from moe_graph.checking.report import ConverterReport


class ConverterCheck:
    """`check_converter(operator, samples, **options)`, to be run later: call it.

    Args:
        operator: an operator of torch.ops.
        samples: as `check_converter` takes them.
        options: its named arguments.
    """

    def __init__(self, operator: Any, samples: Iterable[Any], **options: Any) -> None:
        self.operator = operator
        self.samples = list(samples)
        self.options = options

    def __call__(self) -> ConverterReport:
        """Run it."""
        return check_converter(self.operator, self.samples, **self.options)
