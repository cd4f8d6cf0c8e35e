"""Which line of the user's program an FX node came from.

The graph that torchair serializes carries FX names only. While lowering, torchair also writes the graph as Python text (the "py" dump),
which quotes the lines: "# File <line of the program>" stands before the "## FX Code: <name>: ..." of each node from it.
"""

from __future__ import annotations

_LINE, _NODE = "# File ", "## FX Code: "


def source_lines(python_code: str) -> dict[str, str]:
    """FX node name -> 'file, line N, in function: code', read from torchair's Python text of a graph."""
    lines: dict[str, str] = {}
    current = ""
    for text in python_code.splitlines():
        if text.startswith(_LINE):
            words = [word for word in text[len(_LINE) :].split() if word.strip("^~")]  # without marks under the code
            current = " ".join(words)
        elif text.startswith(_NODE) and current:
            name = text[len(_NODE) :].partition(":")[0].partition(" ")[0]
            lines.setdefault(name, current)
    return lines
