"""ATB's `_npu_rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox_style)`: rotates query and key in their memory.

    positions [...] int64, T in all   query [T, N * head_size], key [T, K * head_size]   cos_sin_cache [positions, head_size]: the
    cosines, then the sines, of head_size / 2 angles
    is_neox_style   pairs are (i, i + head_size / 2); else neighbours (2i, 2i + 1)

Float32 inside, rounded once. Source: op-plugin's C++ (RopeAtb.cpp) and test. On a device torch_npu keeps the first cos_sin_cache of a
process and rotates by it ever after, whatever cache is given; here it is the one that is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.position.rotation import turned

_check = Checks("_npu_rotary_embedding")


def rotary_embedding(
    positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor, is_neox_style: bool
) -> None:
    """query and key, changed. Raises ValueError on arguments that the module's document excludes."""
    flat = positions.flatten().long()
    _check.rank("cos_sin_cache", cos_sin_cache, (2,), "[positions, head_size]")
    if cos_sin_cache.shape[1] != head_size or head_size % 2:
        _check.refuse("cos_sin_cache", f"[positions, {head_size}], an even head_size", tuple(cos_sin_cache.shape))
    if bool(((flat < 0) | (flat >= len(cos_sin_cache))).any()):
        _check.refuse("positions", f"from 0 to {len(cos_sin_cache) - 1}", flat.tolist())
    angles = cos_sin_cache[flat].unsqueeze(1).chunk(2, -1)
    mode = "half" if is_neox_style else "interleave"
    cos, sin = (torch.cat((a, a), -1) if is_neox_style else a.repeat_interleave(2, -1) for a in angles)
    for name, x in (("query", query), ("key", key)):
        if x.shape[0] != len(flat) or x.numel() % max(len(flat) * head_size, 1):
            _check.refuse(name, f"of {len(flat)} rows of heads of {head_size}", f"shape {tuple(x.shape)}")
        x.copy_(turned(x.reshape(len(flat), -1, head_size), cos, sin, mode).reshape(x.shape))


OPERATOR = of_torch_npu("_npu_rotary_embedding", rotary_embedding, namespace="atb")
