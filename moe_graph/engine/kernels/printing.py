"""Text: what torchair.ops.npu_print lowers to. A text is carried as its UTF-8 bytes, uint8 [length]."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from moe_graph.engine.registry import Tensors, kernel


@kernel("StringFormat")
def string_format(x: Tensors, *, template: str = "%s", placeholder: str = "%s", summarize: int = 3) -> Tensor:
    """GE StringFormat: the template with each placeholder replaced by the next tensor, as text.

    A dimension longer than twice `summarize` shows that many elements at either end, with -1 all. The form is that of npu_print in eager:
    elements apart by a blank, rows by a new line, whole numbers without a point, others with nine digits.
    """
    pieces = template.split(placeholder)
    if len(pieces) != len(x) + 1:
        raise ValueError(
            f"template must have {len(x)} placeholders {placeholder!r}, one for a tensor, got {template!r}"
        )
    text = pieces[0] + "".join(_text(value, summarize) + piece for value, piece in zip(x, pieces[1:]))
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


@kernel("PrintV2")
def print_v2(x: Tensor, *, output_stream: str = "stderr") -> Tensors:
    """GE PrintV2: prints a text on the standard error, where torchair's channel from the device brings it, too."""
    print(bytes(x.tolist()).decode(), file=sys.stderr, flush=True)
    return []


def _text(value: Tensor, edge: int) -> str:
    if not value.dim():
        number = value.item()
        return f"{number:.0f}" if float(number).is_integer() else f"{number:.9g}"
    if edge < 0 or value.shape[0] <= 2 * edge:
        parts = [_text(part, edge) for part in value]
    else:
        parts = [_text(part, edge) for part in value[:edge]]
        parts += ["...", *(_text(part, edge) for part in value[-edge:])]
    return f"[{(' ' if value.dim() == 1 else chr(10) + ' ').join(parts)}]"
