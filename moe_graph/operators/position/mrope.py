"""`npu_mrope(positions, query, key, cos_sin_cache, head_size, ...)`: query and key turned, by positions of one kind or of several.

    query, key [T, heads * head_size] floating point   cos_sin_cache [L, R]: cosines, then sines; R <= head_size, the rest of a head passes
    positions  [T]; or [m, T], m = 3 or 4, with mrope_section, whose m sizes make up R / 2
    cache_mode "default"     section i of the cosines is that of positions[i]
               "interleave"  (m = 3) those of positions[0], but at 1, 4, ... of positions[1] and at 2, 5, ... of positions[2], below
                             3 * mrope_section[1]
    rotary_mode "half": halves of the R dimensions are turned together   "interleaved": neighbours

Source: the operator's page in the torch_npu documentation. Float32 inside, rounded once. torchair has no converter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.quantization.int8 import check_values

_check = Checks("npu_mrope")


def _angles(positions: Tensor, cache: Tensor, sections: Sequence[int], mode: str) -> Tensor:
    """[T, 2, R / 2] float32: cosines and sines of each token."""
    known = ((positions >= 0) & (positions < len(cache))).all()
    check_values(_check, "positions", positions, known, f"from 0 to {len(cache) - 1}")
    found = cache.float()[positions.long()].unflatten(-1, (2, -1))  # [m, T, 2, R / 2], or without m
    if positions.dim() == 1:
        return found
    if len(sections) != len(positions) or sum(sections) != found.shape[-1]:
        _check.refuse("mrope_section", f"{len(positions)} sizes that make up R / 2 = {found.shape[-1]}", list(sections))
    if mode == "default":
        return torch.cat([part[i] for i, part in enumerate(found.split(list(sections), -1))], -1)
    if len(positions) != 3:
        _check.refuse("cache_mode", "'default' with four kinds of positions", mode)
    mixed = found[0].clone()
    for kind in (1, 2):
        mixed[..., kind : sections[1] * 3 : 3] = found[kind, ..., kind : sections[1] * 3 : 3]
    return mixed


def _turned(x: Tensor, head_size: int, angles: Tensor, mode: str) -> Tensor:
    """x [T, heads * head_size], turned."""
    cos, sin = angles[:, None, 0], angles[:, None, 1]
    width = 2 * cos.shape[-1]
    heads = x.float().unflatten(-1, (-1, head_size))
    moved, passed = heads[..., :width], heads[..., width:]
    first, second = moved.chunk(2, -1) if mode == "half" else (moved[..., ::2], moved[..., 1::2])
    pair = (first * cos - second * sin, second * cos + first * sin)
    moved = torch.cat(pair, -1) if mode == "half" else torch.stack(pair, -1).flatten(-2)
    return torch.cat((moved, passed), -1).reshape(x.shape).to(x.dtype)


def mrope(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    *,
    mrope_section: Sequence[int] | None = None,
    rotary_mode: str | None = "half",
    cache_mode: str | None = "default",
) -> tuple[Tensor, Tensor]:
    """query and key, turned. Raises ValueError for modes and shapes that the document excludes."""
    _check.rank("positions", positions, (1, 2), "[T] or [m, T]")
    _check.value("rotary_mode", rotary_mode, (None, "half", "interleaved"))
    _check.value("cache_mode", cache_mode, (None, "default", "interleave"))
    if positions.dim() == 1 and cache_mode == "interleave":
        _check.refuse("cache_mode", "'default' with positions of one kind", cache_mode)
    if positions.dim() == 1 and any(mrope_section or ()):
        _check.refuse("mrope_section", "None or zeros with positions of one kind", list(mrope_section or ()))
    _check.size(
        cos_sin_cache.shape[-1] <= head_size, "cos_sin_cache", f"of R <= head_size = {head_size}", cos_sin_cache
    )
    angles = _angles(positions, cos_sin_cache, mrope_section or (), cache_mode or "default")
    mode = rotary_mode or "half"
    return _turned(query, head_size, angles, mode), _turned(key, head_size, angles, mode)


OPERATOR = of_torch_npu("npu_mrope", mrope)
