"""What the operators of sparse attention share: queries and keys in layouts BSND, TND and, of keys, PA_BSND.

    query  BSND [B, S, N, D], TND [T, N, D]     key  the same, or PA_BSND: pages [blocks, block_size, N, D] with a block_table
    actual_seq_lengths_query, _key   valid rows of each sequence [B] int32; in TND where each ends, and then they must be given

Source: the pages of npu_lightning_indexer and npu_sparse_flash_attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_graph.operators.attention import layouts
from moe_graph.operators.attention.layouts import Packed
from moe_graph.operators.attention.masks import CAUSAL_RIGHT, Sequences
from moe_graph.operators.attention.paged import Pages
from moe_graph.operators.checks import Checks

ANY = 9223372036854775807
PAGED = "PA_BSND"


@dataclass(frozen=True)
class Sides:
    """The sequences of queries and of keys."""

    check: Checks
    layout_query: str
    layout_key: str
    batch: int
    queries: Sequences
    keys: Sequences
    packed_queries: Packed | None
    packed_keys: Packed | None
    pages: Pages | None

    def queries_of(self, argument: str, x: Tensor) -> Tensor:
        """A tensor in the layout of queries as [B, N, S, D]."""
        heads = x.shape[self.layout_query.index("N")]
        return layouts.to_bnsd(self.check, argument, x, self.layout_query, heads, self.packed_queries)

    def keys_of(self, argument: str, x: Tensor) -> Tensor:
        """A tensor in the layout of keys as [B, N, S, D], cut to the longest sequence; rows of no sequence are 0."""
        if self.pages is not None:
            self.check.rank(argument, x, (4,), "[blocks, block_size, N, D]")
            whole = self.pages.gather(argument, x.flatten(2), x.shape[2])
        else:
            heads = x.shape[self.layout_key.index("N")]
            whole = layouts.to_bnsd(self.check, argument, x, self.layout_key, heads, self.packed_keys)
        whole = whole[:, :, : self.keys.rows]
        valid = self.keys.valid()
        return whole if valid is None else whole.masked_fill(~valid[:, None, :, None], 0)

    def output(self, x: Tensor, outside: float = 0) -> Tensor:
        """[B, N, S, D] in the layout of the queries."""
        return layouts.from_bnsd(x, self.layout_query, self.packed_queries, outside)

    def seen(self, sparse_mode: int) -> Tensor:
        """Which keys a query may look at, [B, S, Sk]: those of its sequence, causal from the lower right corner in mode 3."""
        positions = torch.arange(self.keys.rows)
        seen = (positions < self.keys.lengths[:, None])[:, None].expand(-1, self.queries.rows, -1)
        rows = torch.arange(self.queries.rows)
        if sparse_mode == CAUSAL_RIGHT:
            shift = (self.keys.lengths - self.queries.lengths)[:, None, None]
            seen = seen & (positions <= rows[:, None] + shift)
        return seen & (rows < self.queries.lengths[:, None])[..., None]


def sides(
    check: Checks,
    query: Tensor,
    key: Tensor,
    layout_query: str,
    layout_key: str,
    lengths_query: Tensor | None,
    lengths_key: Tensor | None,
    block_table: Tensor | None,
    key_names: tuple[str, str],
) -> Sides:
    """The sequences. `key_names`: of the arguments for the keys' layout and lengths."""
    layout_name, lengths_name = key_names
    check.value("layout_query", layout_query, ("BSND", "TND"))
    check.value(layout_name, layout_key, ("BSND", "TND", PAGED))
    check.rank("query", query, (len(layout_query),), f"{layout_query}, {len(layout_query)} dimensions")
    is_paged = layout_key == PAGED
    if not is_paged and layout_key != layout_query:
        check.refuse(layout_name, f"{layout_query}, that of the queries, or {PAGED}", layout_key)
    if is_paged != (block_table is not None):
        check.refuse("block_table", f"given with {layout_name} {PAGED}, and only then", block_table is not None)
    check.rank(
        "key", key, (3 if layout_key == "TND" else 4,), f"{layout_key}, {3 if layout_key == 'TND' else 4} dimensions"
    )
    packed_queries = packed_keys = pages = None
    if layout_query == "TND":
        packed_queries = _packed(check, "actual_seq_lengths_query", lengths_query, query.shape[0])
        queries = Sequences(packed_queries.widest, packed_queries.lengths)
    else:
        queries = Sequences(
            query.shape[1], _lengths(check, "actual_seq_lengths_query", lengths_query, *query.shape[:2])
        )
    batch = len(queries.lengths)
    if layout_key == "TND":
        packed_keys = _packed(check, lengths_name, lengths_key, key.shape[0])
        lengths = packed_keys.lengths
    elif block_table is not None:
        if lengths_key is None:
            check.refuse(lengths_name, f"given in {layout_name} {PAGED}", None)
        lengths = _lengths(check, lengths_name, lengths_key, batch, block_table.shape[-1] * key.shape[1])
        pages = Pages.of(check, block_table, key.shape[1], lengths, batch)
    else:
        lengths = _lengths(check, lengths_name, lengths_key, batch, key.shape[1])
        if key.shape[0] != batch:
            check.refuse("key", f"of {batch} sequences, as query", f"shape {tuple(key.shape)}")
    if len(lengths) != batch:
        check.refuse(lengths_name, f"of {batch} sequences, as query", lengths.tolist())
    keys = Sequences(int(lengths.max()), lengths)
    return Sides(check, layout_query, layout_key, batch, queries, keys, packed_queries, packed_keys, pages)


def whole_range(check: Checks, sparse_mode: int, pre_tokens: int, next_tokens: int) -> None:
    """The modes that there are, and the range of tokens, which only its default serves."""
    check.value("sparse_mode", sparse_mode, (0, CAUSAL_RIGHT))
    check.value("pre_tokens", pre_tokens, (ANY,))
    check.value("next_tokens", next_tokens, (ANY,))


def _packed(check: Checks, name: str, ends: Tensor | None, tokens: int) -> Packed:
    if ends is None:
        check.refuse(name, "given in layout TND: where each sequence ends", None)
    return Packed(check, name, layouts.numbers(ends), tokens)


def _lengths(check: Checks, name: str, lengths: Tensor | None, batch: int, most: int) -> Tensor:
    if lengths is None:
        return torch.full((batch,), most)
    if tuple(lengths.shape) != (batch,) or bool(((lengths < 0) | (lengths > most)).any()):
        check.refuse(name, f"{batch} lengths from 0 to {most}", lengths.tolist())
    return lengths.long()
