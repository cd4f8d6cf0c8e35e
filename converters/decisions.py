"""What a call is lowered to, and why: told to Python's logging, with the line of the program.

The logger is `moe_graph.lowering`: one INFO record for each call of the operator. TORCH_LOGS=+moe_graph shows it, as does `logging`.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from moe_graph.foundation import settings

logger = logging.getLogger("moe_graph.lowering")

_FRAME = re.compile(r'  File "(.*?)", line (\d+), in (\S+)\n\s*(.*)')
# This package's own rooms, also where meta/ and converters/ lie beside it.
_OURS = (str(Path(settings.__file__).parents[1]), str(Path(__file__).parent))
# Where a collective of the program becomes a functional one.
_COLLECTIVE = (str(Path(torch.__file__).parent / "distributed"), str(Path(torch.__file__).parents[1] / "torch_npu"))
_line: contextvars.ContextVar[str] = contextvars.ContextVar("line", default="")


def without_ours(stack: str) -> str:
    """A stack as FX notes it, without the frames of this package and of torch's collectives; as it is, if there are no others."""
    parts = re.split(r'(?m)^(?=  File ")', stack)
    kept = [
        part for part in parts if not part.startswith(tuple(f'  File "{folder}/' for folder in (*_OURS, *_COLLECTIVE)))
    ]
    return "".join(kept) if any(part.startswith("  File") for part in kept) else stack


def line_of(stack: str | None) -> str:
    """The innermost line of the program: 'file, line N, in function: code'; "" without a stack."""
    frames = _FRAME.findall(without_ours(stack or ""))
    return '"{}", line {}, in {}: {}'.format(*frames[-1]) if frames else ""


@contextlib.contextmanager
def lowering(node: Any) -> Iterator[None]:
    """While torchair lowers this FX node: the model's line is the node's, in torchair's dumps, too."""
    if node.stack_trace:
        node.stack_trace = without_ours(node.stack_trace)
    token = _line.set(line_of(node.stack_trace))
    try:
        yield
    finally:
        _line.reset(token)


def tell(operator: str, product: str, reasons: Sequence[str]) -> None:
    """Record what became of a call: one node, or, for these reasons, several."""
    what = "composed of several nodes: " + "; ".join(reasons) if reasons else "one node"
    line = _line.get()
    logger.info("%s for %s: %s%s", operator, product, what, f" ({line})" if line else "")
