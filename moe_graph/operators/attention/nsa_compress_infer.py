"""`npu_nsa_compress_infer.cache(input, weight, slot_mapping, compress_block_size, compress_stride, page_block_size, *, block_table,
actual_seq_len, cache)`: the compressed keys of native sparse attention, a step at a time.

    input [blocks, page_block_size, N, D] float16 or bfloat16, the pages   weight [compress_block_size, N] like input
    block_table [B, blocks] int32   actual_seq_len: the tokens of each sequence   slot_mapping [B] int32   cache [slots, N, D], changed
    -> cache

A sequence whose length is compress_block_size, or more by a multiple of compress_stride, has just filled a window: its last
compress_block_size tokens, summed with the weights, go to the slot slot_mapping says. The slots of other sequences are not looked at.
Float32, rounded once. torchair does not lower it.

Source: the document of NsaCompressWithCache in ops-transformer; op-plugin's op_plugin_functions.yaml and test.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.attention.paged import Pages
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_nsa_compress_infer")
_FLOATS = (torch.float16, torch.bfloat16)


def nsa_compress_infer(
    x: Tensor,
    weight: Tensor,
    slot_mapping: Tensor,
    compress_block_size: int,
    compress_stride: int,
    page_block_size: int,
    *,
    block_table: Tensor | None = None,
    actual_seq_len: Sequence[int] | None = None,
    cache: Tensor,
) -> Tensor:
    """`cache`, changed as the module's document says. Raises ValueError on arguments that it excludes."""
    _check.dtype("input", x, _FLOATS)
    _check.rank("input", x, (4,), "[blocks, page_block_size, N, D]")
    for name, tensor in (("weight", weight), ("cache", cache)):
        _check.dtype(name, tensor, (x.dtype,))
    heads, width = x.shape[2:]
    if compress_stride < 1 or compress_block_size < compress_stride:
        _check.refuse("compress_stride", f"from 1 to compress_block_size, {compress_block_size}", compress_stride)
    if tuple(weight.shape) != (compress_block_size, heads) or tuple(cache.shape[1:]) != (heads, width):
        wanted = f"of shapes [{compress_block_size}, {heads}] and [slots, {heads}, {width}]"
        _check.refuse("weight and cache", wanted, f"shapes {tuple(weight.shape)} and {tuple(cache.shape)}")
    if block_table is None or actual_seq_len is None:
        _check.refuse("block_table and actual_seq_len", "given", None)
    lengths = torch.tensor(list(actual_seq_len), dtype=torch.int64)
    if tuple(slot_mapping.shape) != (len(lengths),) or bool((lengths < 0).any()):
        _check.refuse("slot_mapping and actual_seq_len", "one number from 0 on for each sequence", list(actual_seq_len))
    over = lengths - compress_block_size
    filled = ((over >= 0) & (over % compress_stride == 0)).nonzero().squeeze(1)
    slots = slot_mapping[filled].long()
    if bool(((slots < 0) | (slots >= len(cache))).any()):
        _check.refuse("slot_mapping", f"from 0 to {len(cache) - 1}, the slots of cache", slots.tolist())
    pages = Pages.of(_check, block_table[filled], page_block_size, lengths[filled], len(filled))
    tokens = pages.gather("input", x.flatten(2), heads).transpose(1, 2)  # [filled, S, N, D]
    places = over[filled][:, None] + torch.arange(compress_block_size)
    last = tokens[torch.arange(len(filled))[:, None], places].float()
    cache[slots] = (last * weight.float().unsqueeze(-1)).sum(1).to(cache.dtype)
    return cache


OPERATOR = of_torch_npu("npu_nsa_compress_infer.cache", nsa_compress_infer)
