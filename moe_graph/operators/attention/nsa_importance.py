"""Which blocks of keys native sparse attention selects: from the probabilities of the compressed keys.

    importance[j] = the sum over a < select / stride and b < compress / stride of P[select / stride * (j + 1) - a - b], over the heads that
    share a key/value head, too; j counts blocks of select_block_size keys, P is of compressed keys, which are compress_stride apart

Positions that no compressed key has count as 0. Source: the documents of aclnnNsaCompressAttention and its Infer form (ops-transformer),
op-plugin's tests (their golden functions).
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks


def importance(probabilities: Tensor, key_heads: int, blocks: int, select: int, compress: int, stride: int) -> Tensor:
    """P [B, N, Sq, Sk] -> [B, K, Sq, blocks], float32."""
    size, window = select // stride, compress // stride
    # how many (a, b) have the sum t
    counts = torch.zeros(size + window - 1)
    for b in range(window):
        counts[b : b + size] += 1
    places = size * torch.arange(1, blocks + 1)[:, None] - torch.arange(len(counts))
    known = (places >= 0) & (places < probabilities.shape[3])
    taken = probabilities[..., places.clamp(0, max(probabilities.shape[3] - 1, 0))] * known
    by_head = (taken * counts).sum(-1)
    return by_head.unflatten(1, (key_heads, -1)).sum(2)


def largest(scores: Tensor, count: int) -> Tensor:
    """The `count` blocks of the largest scores, int32; of equal ones the first."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count].to(torch.int32)


def check_sizes(check: Checks, select: int, compress: int, stride: int) -> None:
    """Raise ValueError unless stride divides both block sizes and the compressed blocks are the smaller ones."""
    if stride < 1 or compress < stride or compress % stride or select % stride:
        check.refuse("compress_stride", f"a divisor of {compress} and {select}, the sizes of the blocks", stride)
    if select < compress:
        check.refuse("select_block_size", f"at least compress_block_size, {compress}", select)
