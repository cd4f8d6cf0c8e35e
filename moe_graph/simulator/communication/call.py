"""One call of a collective, as the ranks of a group tell it to each other before any data moves.

Each rank sends all others one row of bytes, of the same length whatever it calls: a digest of what must be equal on all ranks (operation,
reduction, root, dtype, size), the bytes that it sends to and expects from each rank, and the same in words, with the line of the program.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moe_graph.simulator.communication.place import Place

_DIGEST, _TEXT = 16, 496
_UNSAID = -1  # this rank does not know how much it is


@dataclass(frozen=True)
class Call:
    """What a rank calls.

    operation  in the program's words: "all_gather_into_tensor"
    kind       what all ranks must call: "all_gather" for each of its forms
    equal      what must be equal on all ranks, in words: "SUM of 4 float32"
    sent       bytes to each rank; received: bytes from each; (): not compared
    size       of this rank's tensors, in words, where the ranks' may differ
    number     the how manyth of the group it is
    group      the group's name
    """

    operation: str
    kind: str
    equal: str
    place: Place
    number: int = 0
    sent: Sequence[int] = ()
    received: Sequence[int] = ()
    size: str = ""
    group: str = ""

    def __str__(self) -> str:
        within = f"{self.place.operator}: " if self.place.operator else ""
        details = ", ".join(filter(None, (self.equal, self.size)))
        return f"{within}{self.operation} #{self.number}{f' ({details})' if details else ''} at {self.place.line}"

    def row(self, ranks: int) -> bytes:
        """What is sent to each rank."""
        compared = "\0".join((self.kind, self.equal, self.place.operator))
        text = str(self).encode()
        if len(text) > _TEXT:  # the end of a path and its line say more than the beginning
            text = text[: _TEXT // 2 - 2] + b"..." + text[1 - _TEXT // 2 :]
        counts = np.full((2, ranks), _UNSAID, np.int64)
        for target, given in zip(counts, (self.sent, self.received)):
            if len(given):
                target[:] = given
        digest = hashlib.blake2b(compared.encode(), digest_size=_DIGEST).digest()
        return digest + text.ljust(_TEXT, b"\0") + counts.tobytes()

    def rows(self, ranks: int) -> Tensor:
        """[ranks, bytes]: `row` for each rank."""
        row = torch.frombuffer(bytearray(self.row(ranks)), dtype=torch.uint8)
        return row.repeat(ranks, 1)


def length(ranks: int) -> int:
    """The bytes of a row."""
    return _DIGEST + _TEXT + 2 * 8 * ranks


def agree(rows: Tensor) -> bool:
    """Do the calls whose rows these are [ranks, bytes] belong together?"""
    given = rows.numpy()
    sent, received = _counts(given)
    fits = (sent == received.T) | (sent == _UNSAID) | (received.T == _UNSAID)
    return bool((given[:, :_DIGEST] == given[0, :_DIGEST]).all() and fits.all())


def texts(rows: Tensor) -> list[str]:
    """The calls in words, by rank."""
    return [row[_DIGEST : _DIGEST + _TEXT].tobytes().rstrip(b"\0").decode(errors="replace") for row in rows.numpy()]


def mismatch(rows: Tensor, ranks: Sequence[int]) -> str:
    """In words, what does not fit. `ranks`: the numbers of the group's ranks in the program."""
    given = rows.numpy()
    same = [tuple(row) for row in given[:, :_DIGEST].tolist()]
    usual = max(same, key=same.count)
    if same.count(usual) < len(same):
        others = [rank for rank, own in zip(ranks, same) if own != usual]
        if same.count(usual) <= len(same) // 2:
            return "the ranks do not call the same"
        return f"{named(others)} {'does' if len(others) == 1 else 'do'} not call what the others call"
    sent, received = _counts(given)
    wrong = np.argwhere((sent != received.T) & (sent != _UNSAID) & (received.T != _UNSAID))
    source, target = wrong[0].tolist()
    return (
        f"rank {ranks[source]} sends {sent[source, target]} bytes to rank {ranks[target]}, "
        f"which expects {received[target, source]}"
    )


def named(ranks: Sequence[int]) -> str:
    """ "rank 2", "ranks 0, 1" """
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _counts(given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [ranks, ranks] both: [i, j] bytes that rank i sends to j, and that rank i expects from j."""
    counts = given[:, _DIGEST + _TEXT :].copy().view(np.int64).reshape(len(given), 2, -1)
    return counts[:, 0], counts[:, 1]
