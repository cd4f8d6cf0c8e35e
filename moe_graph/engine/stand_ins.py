"""A surveyed graph: a node that has no kernel, or that its kernel refuses, answers with stand-ins of the shapes that FX has for it.

Where FX has none, between the nodes that one operator is lowered to, the values stay unknown up to the next node that FX knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from moe_graph.engine.errors import KernelError
from moe_graph.engine.graph import Descriptor, Node, Plan
from moe_graph.foundation import marks, survey

Values = dict[tuple[int, int], Any]
Compute = Callable[[Node, Values, Plan], list[Tensor]]

_SIZES = re.compile(r"Size\(\[(.*?)\]\)")
_SYMBOL = re.compile(r"SymInt'>\((\w+)\)")
# What torch writes in sizes, beside Python's own arithmetic.
_FUNCTIONS: dict[str, Any] = {
    "__builtins__": {},
    "Max": max,
    "Min": min,
    "FloorDiv": lambda a, b: a // b,
    "Mod": lambda a, b: a % b,
}


class Unknown:
    """In place of a tensor: its shape or dtype is not known."""


class StandIns:
    """Computes the nodes of one run, or stands in for them."""

    def __init__(self, plan: Plan, values: Mapping[tuple[int, int], Tensor], compute: Compute) -> None:
        self._plan = plan
        self._compute = compute
        self._sizes: dict[str, Any] = dict(_FUNCTIONS)
        # Of an input that the program also views, torchair writes the sizes of the view; later nodes say it again, and right.
        for node in sorted(plan.data.values(), key=lambda node: "SymInt" in node.outputs[0].fx_meta):
            self._learn(node.outputs[0].fx_meta, values[node.index, 0])
        self._made: set[tuple[int, int]] = set()

    def __call__(self, node: Node, values: Values, plan: Plan) -> list[Any]:
        """The outputs of a node."""
        fed = [slot for slot in node.slots if slot is not None]
        follows = marks.call.fed or not self._made.isdisjoint(fed)
        if node.kernel is not None and not any(isinstance(values[slot], Unknown) for slot in fed):
            try:
                results = self._compute(node, values, plan)
            except KernelError as error:
                if not follows:
                    survey.found(survey.GE_FORM, node.type, str(error.__cause__ or error), node.line)
            else:
                self._note(node, follows)
                for output, result in zip(node.outputs, results):
                    self._learn(output.fx_meta, result)
                return results
        self._note(node, True)
        return [self._described(output) for output in node.outputs]

    def check(self, values: Values) -> None:
        """Raises KernelError if an output of the graph has no known shape: the survey cannot go on."""
        for position, (index, output) in enumerate(self._plan.results):
            if isinstance(values[index, output], Unknown):
                raise KernelError(f"survey: the shape of output {position}, of {self._plan.nodes[index]}, is not known")

    def _note(self, node: Node, is_made: bool) -> None:
        if is_made:
            marks.call.answered = True
            self._made.update((node.index, output) for output in range(len(node.outputs)))

    def _learn(self, meta: str, value: Tensor) -> None:
        """Learn the symbols that stand alone for a size, or for a number, from a value that is known."""
        number, sizes = _SYMBOL.search(meta), _SIZES.search(meta)
        if number:
            self._sizes[number[1]] = int(value)
        elif sizes:
            names = sizes[1].split(", ")
            self._sizes.update((name, size) for name, size in zip(names, value.shape) if name.isidentifier())

    def _described(self, output: Descriptor) -> Tensor | Unknown:
        sizes = _SIZES.search(output.fx_meta)
        if sizes is None or output.type is None:
            return Unknown()
        try:
            shape = [int(eval(size, self._sizes)) for size in sizes[1].split(", ") if size]
        except (NameError, SyntaxError, TypeError):
            return Unknown()
        return marks.without_values(torch.empty(shape, dtype=output.type.torch))
