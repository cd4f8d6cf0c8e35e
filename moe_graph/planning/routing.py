"""How tokens may be spread over experts, and what that means for the rank that has most to do.

A distribution is the number of tokens of each rank that go to each expert, [ranks, experts]; a rank's row adds up to its tokens times k.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_graph.planning.errors import PlanError

UNIFORM, SKEWED = "uniform", "skewed"
EXPONENT = 1.0  # of "skewed": the n-th most wanted expert is wanted as 1 / n^EXPONENT


def distribution(what: str, ranks: int, experts: int, tokens: int | Sequence[int], top_k: int) -> np.ndarray:
    """Tokens of each rank for each expert, int64 [ranks, experts].

    `what` is "uniform", "skewed" (the n-th expert is wanted as 1 / n; a token goes to an expert once), or a file: JSON, or numbers
    separated by commas, of [ranks, experts] tokens, or of [experts] shares that all ranks have. Raises PlanError for a file of another
    size, or for tokens that do not add up to `tokens` times `top_k`.
    """
    counts = [tokens] * ranks if isinstance(tokens, int) else list(tokens)
    if what == UNIFORM:
        shares = np.ones((1, experts))
    elif what == SKEWED:
        shares = 1.0 / np.arange(1, experts + 1)[None] ** EXPONENT
    else:
        given = _read(what)
        if given.shape == (ranks, experts):
            sums, wanted = given.sum(1), np.array(counts) * top_k
            if (given != given.astype(np.int64)).any() or (given < 0).any() or (sums != wanted).any():
                raise PlanError(
                    f"{what}: each rank's row must be whole numbers of tokens that add up to {top_k} for each of its tokens, "
                    f"{wanted.tolist()[:4]}..., got {sums.tolist()[:4]}..."
                )
            return given.astype(np.int64)
        if given.size != experts or (given < 0).any() or not given.sum() > 0:
            raise PlanError(
                f"{what} must hold [{ranks}, {experts}] tokens or [{experts}] shares, got {list(given.shape)}"
            )
        shares = given.reshape(1, experts)
    rows = {count: _shared(shares[0], count, top_k) for count in set(counts)}
    made = np.stack([rows[count] for count in counts])
    if what == UNIFORM:  # who is left over differs from rank to rank
        made = np.stack(
            [np.roll(row, rank * int(count * top_k % experts)) for rank, (row, count) in enumerate(zip(made, counts))]
        )
    return made


def check(what: str) -> None:
    """Raises PlanError if `what` is neither a distribution by its name nor a file of numbers."""
    if what not in (UNIFORM, SKEWED):
        _read(what)


def _read(path: str) -> np.ndarray:
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise PlanError(
            f'a distribution of tokens is "uniform", "skewed" or a file, and {path}: {error.strerror}'
        ) from error
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else [line.split(",") for line in text.split()]
        return (
            np.squeeze(np.array(rows, dtype=np.float64), axis=0) if len(rows) == 1 else np.array(rows, dtype=np.float64)
        )
    except ValueError as error:
        raise PlanError(f"{path} holds no numbers of tokens: {error}") from error


def _shared(shares: np.ndarray, tokens: int, top_k: int) -> np.ndarray:
    """Whole tokens by shares, none above `tokens`, of tokens * top_k in all; what rounding leaves goes to the largest remainders."""
    total = tokens * top_k
    if total > tokens * len(shares):
        raise PlanError(f"a token cannot go to {top_k} of {len(shares)} experts")
    exact, full = np.zeros(len(shares)), np.zeros(len(shares), dtype=bool)
    while True:
        left = total - tokens * full.sum()
        weight = np.where(full, 0.0, shares)
        exact = np.where(full, tokens, left * weight / max(weight.sum(), 1e-300))
        over = (exact > tokens) & ~full
        if not over.any():
            break
        full |= over
    made = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - made), kind="stable")
    room = [at for at in order if made[at] < tokens]
    for at in room[: total - int(made.sum())]:
        made[at] += 1
    return made


@dataclass(frozen=True)
class Load:
    """What the ranks have to do under a distribution.

    Attributes:
        received: tokens that each rank's experts take
        worst: the rank with most of them
        busiest_expert, busiest: the expert with most tokens, and how many
        sent_elsewhere: tokens that each rank sends to others
    """

    received: tuple[int, ...]
    worst: int
    busiest_expert: int
    busiest: int
    sent_elsewhere: tuple[int, ...]

    @property
    def imbalance(self) -> float:
        """The worst rank's tokens over the mean."""
        mean = sum(self.received) / len(self.received)
        return max(self.received) / mean if mean else 1.0


def load(counts: np.ndarray) -> Load:
    """The load of each rank, given tokens [ranks, experts]. Raises PlanError unless the experts divide into the ranks."""
    ranks, experts = counts.shape
    if experts % ranks:
        raise PlanError(f"{experts} experts do not divide into {ranks} ranks")
    by_rank = counts.reshape(ranks, ranks, -1).sum(2)  # [from, to]
    received, of_expert = by_rank.sum(0), counts.sum(0)
    away = by_rank.sum(1) - np.diagonal(by_rank)
    busiest = int(of_expert.argmax())
    return Load(
        tuple(map(int, received)), int(received.argmax()), busiest, int(of_expert[busiest]), tuple(map(int, away))
    )
