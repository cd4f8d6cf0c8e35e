"""`npu_kv_quant_sparse_flash_attention(query, key, value, sparse_indices, scale_value, 2, 2, ...)`: sparse attention of an int8 cache.

    query   as `sparse` says, float16 or bfloat16; its last rope_head_dim elements are its rope
    key     int8; of a token its elements (D of them), its rope in the bytes of query's dtype, and the bytes of a float32 scale for each
            tile_size elements: 512 + 2 * 64 + 4 * 4 of latent attention
    value   int8: the same cache, of which the elements alone may be given; values are read from key, as there is but one cache
    -> attention_out   query's dtype, query's shape without the rope

Elements times their scale are rounded to query's dtype, as on the device. key_quant_mode and value_quant_mode are 2 (by tile),
quant_scale_repo_mode is 1 (scales beside the elements), attention_mode 2. All else as in `sparse_flash_attention`. Not served:
float8_e4m3fn, hifloat8. Sources: the operator's page, the rounding in its test in op-plugin; of the output's shape torch_npu's fake
implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.attention.sparse import ANY, sides, whole_range
from moe_graph.operators.attention.sparse_flash_attention import LATENT, attend_chosen, chosen_keys
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed

_check = Checks("npu_kv_quant_sparse_flash_attention")
_FLOATS = (torch.float16, torch.bfloat16)
_BY_TILE, _BESIDE = 2, 1


def kv_quant_sparse_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sparse_indices: Tensor,
    scale_value: float,
    key_quant_mode: int,
    value_quant_mode: int,
    *,
    key_dequant_scale: Tensor | None = None,
    value_dequant_scale: Tensor | None = None,
    block_table: Tensor | None = None,
    actual_seq_lengths_query: Tensor | None = None,
    actual_seq_lengths_kv: Tensor | None = None,
    sparse_block_size: int = 1,
    layout_query: str = "BSND",
    layout_kv: str = "BSND",
    sparse_mode: int = 3,
    pre_tokens: int = ANY,
    next_tokens: int = ANY,
    attention_mode: int = 0,
    quant_scale_repo_mode: int = 1,
    tile_size: int = 128,
    rope_head_dim: int = 64,
    key_dtype: int | None = None,
    value_dtype: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """attention_out, as the module's document says. Raises ValueError on arguments that it excludes."""
    whole_range(_check, sparse_mode, pre_tokens, next_tokens)
    _check.value("attention_mode", attention_mode, (LATENT,))
    _check.value("key_quant_mode", key_quant_mode, (_BY_TILE,))
    _check.value("value_quant_mode", value_quant_mode, (_BY_TILE,))
    _check.value("quant_scale_repo_mode", quant_scale_repo_mode, (_BESIDE,))
    for name, given in (("key_dequant_scale", key_dequant_scale), ("value_dequant_scale", value_dequant_scale)):
        _check.absent(name, given, "which is reserved")
    for name, number in (("key_dtype", key_dtype), ("value_dtype", value_dtype)):
        _check.absent(name, number, "which is for hifloat8")
    _check.dtype("query", query, _FLOATS)
    _check.dtype("key", key, (torch.int8,))
    _check.dtype("value", value, (torch.int8,))
    names = ("layout_kv", "actual_seq_lengths_kv")
    found = sides(
        _check, query, key, layout_query, layout_kv, actual_seq_lengths_query, actual_seq_lengths_kv, block_table, names
    )
    width = query.shape[-1] - rope_head_dim
    if width < 1 or tile_size < 1 or width % tile_size:
        _check.refuse(
            "query", f"of tiles of {tile_size} elements and {rope_head_dim} of rope", f"shape {tuple(query.shape)}"
        )
    keys, ropes = _dequantized(found.keys_of("key", key), width, rope_head_dim, tile_size, query.dtype)
    if value.shape[:-1] != key.shape[:-1]:
        _check.refuse(
            "value", f"of shape {list(key.shape[:-1])} and a last size, as key", f"shape {tuple(value.shape)}"
        )
    chosen = chosen_keys(_check, found, sparse_indices, sparse_block_size, sparse_mode)
    queries, whole = found.queries_of("query", query).float(), torch.cat([keys, ropes], -1)
    return attend_chosen(_check, found, queries, whole, keys, chosen, scale_value, sinks, query.dtype, False)[0]


def _dequantized(cache: Tensor, width: int, rope: int, tile: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Elements and rope of the cache's tokens, [..., width] and [..., rope], float32."""
    sizes = [width, rope * dtype.itemsize, width // tile * 4]
    if cache.shape[-1] != sum(sizes):
        _check.refuse("key", f"of a last size {sum(sizes)}: {sizes} bytes", cache.shape[-1])
    elements, ropes, scales = (part.clone(memory_format=torch.contiguous_format) for part in cache.split(sizes, -1))
    scaled = elements.float() * scales.view(torch.float32).repeat_interleave(tile, -1)
    return scaled.to(dtype).float(), ropes.view(dtype).float()


OPERATOR = of_torch_npu(
    "npu_kv_quant_sparse_flash_attention",
    kv_quant_sparse_flash_attention,
    ge=[
        GeKernel(
            "KvQuantSparseFlashAttention",
            renamed(kv_quant_sparse_flash_attention, without=("key_dtype", "value_dtype")),
            outputs=("attention_out",),
        ),
    ],
)
