"""torchair's comments in a "py" dump: the line of the model's code and the FX node that the statements below them lower."""

from __future__ import annotations

import re
from dataclasses import dataclass

from moe_graph.dumps.model import Descriptor
from moe_graph.dumps.reading_values import fx_sizes

_FILE = re.compile(r'# File "(?P<file>.*?)", line (?P<line>\d+), in (?P<function>\S+)')
_FX = re.compile(
    r"## FX Code: (?P<name>\w+)"
    r'(?:: (?:torch\.(?P<dtype>\w+)\[(?P<sizes>[^\]]*)\](?:[a-z]\w*(?::\d+)?)?|"Sym\(.*?\)"(?P<symbol>)))?'
    r" = (?P<target>[\w.]+)\((?P<arguments>.*)\)$"
)
_ARGUMENT = re.compile(r"(?:^|[\s,\[(=])([A-Za-z_]\w*)(?=: [\"t]|[,\])]|$)")
_OUTPUT = re.compile(r", (\d+)$")
# torchair writes the line of code above the first FX node that comes from it and never again.
EARLIER = " (or an earlier line)"


@dataclass(frozen=True)
class FxNode:
    """`output` is the one picked by an operator.getitem, None for other targets."""

    name: str
    target: str
    arguments: tuple[str, ...]
    result: Descriptor | None
    output: int | None

    def __str__(self) -> str:
        return f"{self.name}: {self.target}"


def source_line(comment: str) -> str:
    """'# File "model.py", line 12, in forward    x = ...' -> "model.py:12 in forward"; "" if it is another comment."""
    match = _FILE.match(comment)
    return f"{match['file']}:{match['line']} in {match['function']}" if match else ""


def fx_node(comment: str) -> FxNode | None:
    """The FX node a "## FX Code" comment shows; None if it is another comment."""
    match = _FX.match(comment)
    if match is None:
        return None
    result = None
    if match["dtype"]:
        result = Descriptor(match["dtype"], fx_sizes(match["sizes"]))
    elif match["symbol"] is not None:
        result = Descriptor("int64", ())
    target = re.sub(r"^torch\.ops\.", "", match["target"])
    picked = _OUTPUT.search(match["arguments"]) if target.endswith("operator.getitem") else None
    return FxNode(
        match["name"],
        target,
        tuple(_ARGUMENT.findall(match["arguments"])),
        result,
        int(picked[1]) if picked else None,
    )
