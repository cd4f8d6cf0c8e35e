"""Which keys a query sees: the sequences' lengths, the sparse modes, and the mask that the caller gives.

    sparse_mode 0  the mask, if there is one, and with it the band: key - query from -pre_tokens to next_tokens
                1  the mask alone
                2  causal from the upper left corner: key <= query
                3  causal from the lower right corner: key <= query + (length of the keys - length of the queries)
                4  the band, from the lower right corner
                9  a tree: of the keys' last S tokens, S the length of the queries, those that the mask [S, S] leaves; all before them

A mask is true (or not 0) where a key is hidden. Modes 2 to 4 want the upper triangle of 2048 x 2048, from which the device cuts its
blocks; positions count from the start of each sequence. Source: the pages of npu_fused_infer_attention_score and its _v2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks

TRIANGLE = 2048
CAUSAL_LEFT, CAUSAL_RIGHT, BAND, TREE = 2, 3, 4, 9


@dataclass(frozen=True)
class Sequences:
    """Where the tokens of each sequence lie in [B, N, S, D]: S rows, of which `lengths` [B] from `starts` [B] on are valid."""

    rows: int
    lengths: Tensor
    starts: Tensor | None = None

    def positions(self) -> Tensor:
        """The position of each row in its sequence, [B or 1, S]; negative before its start."""
        rows = torch.arange(self.rows)
        return rows[None] if self.starts is None else rows - self.starts[:, None]

    def valid(self) -> Tensor | None:
        """Which rows are tokens, [B, S]; None if all are."""
        if self.starts is None and bool((self.lengths == self.rows).all()):
            return None
        positions = self.positions()
        return (positions >= 0) & (positions < self.lengths[:, None])

    def clear(self, x: Tensor) -> None:
        """Set the rows of x [B, N, S, D] that are no tokens to 0, in place."""
        starts = [0] * len(x) if self.starts is None else self.starts.clamp_min(0).tolist()
        for sequence, start, length in zip(x, starts, self.lengths.tolist()):
            if start:
                sequence[:, :start] = 0
            if start + length < self.rows:
                sequence[:, start + length :] = 0


def visible(
    check: Checks,
    queries: Sequences,
    keys: Sequences,
    mask: Tensor | None,
    sparse_mode: int,
    pre_tokens: int,
    next_tokens: int,
) -> Tensor | None:
    """The keys that each query sees, boolean, to be broadcast to [B, N, Sq, Sk]; None if it sees all."""
    seen: list[Tensor] = []
    valid = keys.valid()
    if valid is not None:
        seen.append(valid[:, None, None])
    valid = queries.valid()
    if valid is not None:
        seen.append(valid[:, None, :, None])
    shift = (keys.lengths - queries.lengths).view(-1, 1, 1, 1)
    distance = keys.positions()[:, None, None] - queries.positions()[:, None, :, None]
    if sparse_mode in (CAUSAL_LEFT, CAUSAL_RIGHT, BAND):
        _check_triangle(check, mask, sparse_mode)
        if sparse_mode == CAUSAL_LEFT:
            seen.append(distance <= 0)
        elif sparse_mode == CAUSAL_RIGHT:
            seen.append(distance <= shift)
        else:
            seen.append((distance - shift >= -pre_tokens) & (distance - shift <= next_tokens))
    elif sparse_mode == TREE:
        seen.append(_tree(check, queries, keys, mask))
    elif mask is not None:
        seen.append(_given(check, mask, len(keys.lengths), queries.rows, keys.rows))
        if sparse_mode == 0 and queries.starts is None and keys.starts is None:
            longest = queries.rows + keys.rows
            if pre_tokens < longest or next_tokens < longest:
                seen.append((distance >= -pre_tokens) & (distance <= next_tokens))
    elif sparse_mode == 1:
        check.refuse("atten_mask", "given in sparse_mode 1", None)
    if not seen:
        return None
    result = seen[0]
    for part in seen[1:]:
        result = result & part
    return result


def _check_triangle(check: Checks, mask: Tensor | None, sparse_mode: int) -> None:
    """The mask of the causal modes: 2048 x 2048, hidden above the diagonal. Its edges are looked at, not all of it."""
    allowed = f"the upper triangle of {TRIANGLE} x {TRIANGLE} (true above the diagonal) in sparse_mode {sparse_mode}"
    shapes = [(1,) * ones + (TRIANGLE, TRIANGLE) for ones in range(3)]
    if mask is None or tuple(mask.shape) not in shapes:
        check.refuse("atten_mask", allowed, None if mask is None else f"shape {tuple(mask.shape)}")
    square = mask.view(TRIANGLE, TRIANGLE)
    if bool(square.diagonal().any()) or bool(square[-1].any()) or not bool(square[0, 1:].all()):
        check.refuse("atten_mask", allowed, "another mask")


def _given(check: Checks, mask: Tensor, batch: int, rows: int, keys: int) -> Tensor:
    """The caller's mask, [B or 1, 1 or N, Sq, Sk], true where a key is seen. It may be larger than needed."""
    shape = tuple(mask.shape)
    if mask.dim() == 2:
        mask = mask[:, None, None] if rows == 1 else mask[None, None]
    elif mask.dim() == 3:
        mask = mask[:, None]
    fits = mask.dim() == 4 and mask.shape[0] in (1, batch) and mask.shape[2] >= rows and mask.shape[3] >= keys
    if not fits:
        wanted = f"[{rows}, {keys}], [{batch} or 1, {rows}, {keys}] or [{batch} or 1, 1, {rows}, {keys}], or larger in the last two"
        check.refuse("atten_mask", f"of shape {wanted}", f"shape {shape}")
    return mask[:, :, :rows, :keys] == 0


def _tree(check: Checks, queries: Sequences, keys: Sequences, mask: Tensor | None) -> Tensor:
    """Mode 9, [B, 1, Sq, Sk]. The mask is [B, S, S], or one row of all sequences' squares one after the other."""
    batch, rows = len(queries.lengths), queries.rows
    base = keys.lengths - queries.lengths
    if mask is None or bool((base < 0).any()):
        check.refuse("atten_mask", "given in sparse_mode 9, with at least as many keys as queries", None)
    squares = torch.zeros(batch, rows, rows, dtype=torch.bool)
    if mask.dim() == 1:
        sizes = queries.lengths.tolist()
        if mask.numel() != sum(size * size for size in sizes):
            check.refuse(
                "atten_mask", f"of {sum(size * size for size in sizes)} elements", f"shape {tuple(mask.shape)}"
            )
        for square, size, part in zip(squares, sizes, mask.split([size * size for size in sizes])):
            square[:size, :size] = part.view(size, size) == 0
    elif tuple(mask.shape) == (batch, rows, rows):
        squares = mask == 0
    else:
        check.refuse("atten_mask", f"of shape [{batch}, {rows}, {rows}] in sparse_mode 9", f"shape {tuple(mask.shape)}")
    drafted = (torch.arange(keys.rows) - base[:, None])[:, None].expand(-1, rows, -1)  # [B, Sq, Sk]
    inside = squares.gather(2, drafted.clamp(0, max(rows - 1, 0)))
    return ((drafted < 0) | ((drafted < rows) & inside))[:, None]
