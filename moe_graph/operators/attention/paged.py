"""Paged key/value caches: blocks of tokens, which a block table assigns to sequences.

    block_table  [B, blocks] int32: the blocks of each sequence in order
    cache        BnBsH [blocks, block_size, N*D], BnNBsD [blocks, N, block_size, D], or NZ [blocks, N, D/c, block_size, c] with c = 16
                 (16-bit elements) or 32 (8-bit ones): a block's D is cut into strips of c

Source: the page of npu_fused_infer_attention_score. Blocks behind the end of a sequence are not read, whatever the table says of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks


@dataclass(frozen=True)
class Pages:
    """The blocks that sequences of these lengths need. `ids` [B, blocks]; those that a sequence does not need are 0."""

    ids: Tensor
    block_size: int
    check: Checks

    @classmethod
    def of(
        cls,
        check: Checks,
        block_table: Tensor,
        block_size: int,
        lengths: Tensor,
        batch: int,
        argument: str = "block_table",
    ) -> Pages:
        """The pages. Raises ValueError if the table has no row for a sequence, or too few blocks."""
        check.rank(argument, block_table, (2,), "[B, blocks]")
        if block_size < 1:
            check.refuse("block_size", "at least 1 with a block_table", block_size)
        if block_table.shape[0] != batch:
            check.refuse(argument, f"of first size {batch}, the batch", f"shape {tuple(block_table.shape)}")
        needed = (lengths + block_size - 1) // block_size
        most = int(needed.max()) if batch else 0
        if most > block_table.shape[1]:
            check.refuse(
                argument, f"of second size {most} at least, for the longest sequence", tuple(block_table.shape)
            )
        ids = block_table[:, :most].long().masked_fill(torch.arange(most) >= needed[:, None], 0)
        return cls(ids, block_size, check)

    def gather(self, argument: str, cache: Tensor, heads: int) -> Tensor:
        """A cache's tokens in order, [B, N, S, D], with S a multiple of the block size."""
        self.check.rank(
            argument, cache, (3, 4, 5), "[blocks, block_size, N*D], [blocks, N, block_size, D] or NZ of 5 dimensions"
        )
        order: tuple[int, ...]
        if cache.dim() == 3:
            if cache.shape[2] % heads:
                self.check.refuse(argument, f"of a last size that {heads} heads divide", f"shape {tuple(cache.shape)}")
            blocks, order = cache.unflatten(2, (heads, cache.shape[2] // heads)), (0, 3, 1, 2, 4)
        elif cache.dim() == 4:
            blocks, order = cache, (0, 2, 1, 3, 4)
        else:
            blocks, order = cache, (0, 2, 1, 4, 3, 5)
        sizes = (blocks.shape[1], blocks.shape[2]) if cache.dim() == 3 else (blocks.shape[-2], blocks.shape[1])
        if sizes != (self.block_size, heads):
            wanted = f"a cache with blocks of {self.block_size} tokens and {heads} heads"
            self.check.refuse(argument, wanted, f"shape {tuple(cache.shape)}")
        taken = self.take(argument, blocks).permute(order)
        batch, _, count, *_ = taken.shape
        width = taken.shape[4:].numel()
        return taken.reshape(batch, heads, count * self.block_size, width)

    def take(self, argument: str, blocks: Tensor) -> Tensor:
        """[blocks, ...] to [B, blocks of a sequence, ...]."""
        if self.ids.numel() and not bool(((self.ids >= 0) & (self.ids < blocks.shape[0])).all()):
            self.check.refuse(
                "block_table", f"of blocks from 0 to {blocks.shape[0] - 1}, which {argument} has", self.ids.tolist()
            )
        return blocks.index_select(0, self.ids.flatten()).unflatten(0, tuple(self.ids.shape))
