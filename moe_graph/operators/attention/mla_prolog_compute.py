"""The mathematics of npu_mla_prolog, as the document of `mla_prolog` has it: tokens to queries and rows of the caches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from moe_graph.operators.matmul.products import exact_product
from moe_graph.operators.normalization.rms_norm import rms_norm
from moe_graph.operators.position.rotation import turned
from moe_graph.operators.quantization.int8 import dynamic_int8, to_int8
from moe_graph.operators.rounding import listed

_mm, _bmm = listed(torch.ops.aten.mm.default), listed(torch.ops.aten.bmm.default)


class Weights(NamedTuple):
    """The matrices and gammas, as the module's document says."""

    dq: Tensor
    uq_qr: Tensor
    uk: Tensor
    dkv_kr: Tensor
    gamma_cq: Tensor
    gamma_ckv: Tensor


class Scales(NamedTuple):
    """The scales of the quantised modes, each None where its mode has none."""

    x: Tensor | None = None
    w_dq: Tensor | None = None
    w_uq_qr: Tensor | None = None
    w_dkv_kr: Tensor | None = None
    ckv: Tensor | None = None
    ckr: Tensor | None = None
    smooth_cq: Tensor | None = None


class Queries(NamedTuple):
    """What the prolog gives beside the caches, all with the tokens in one dimension."""

    query: Tensor  # [T, N, Hckv]
    query_rope: Tensor  # [T, N, Dr]
    query_scale: Tensor  # [T, N, 1] float32, or [0]
    norm: Tensor  # [T, Hcq]
    norm_scale: Tensor  # [T, 1] float32, or [0]


def _product(x: Tensor, weight: Tensor, x_scale: Tensor | None, weight_scale: Tensor | None, name: str) -> Tensor:
    """float32 x @ weight; of int8 exact and scaled back, of bfloat16 rounded to it."""
    if x.dtype != torch.int8:
        return _mm(x, weight).float()
    if x_scale is None or weight_scale is None:
        raise ValueError(f"npu_mla_prolog: int8 {name} needs its dequant_scale and that of its input")
    return exact_product(x, weight).float() * x_scale.reshape(-1, 1).float() * weight_scale.reshape(1, -1).float()


def prolog(
    x: Tensor,
    weights: Weights,
    sin: Tensor,
    cos: Tensor,
    scales: Scales,
    epsilons: tuple[float, float],
    factors: tuple[float, float],
    quantise_query: bool,
) -> tuple[Queries, Tensor, Tensor]:
    """(queries, rows of kv_cache [T, Hckv], rows of kr_cache [T, Dr]) of tokens x [T, He]; sin and cos [T, Dr]."""
    heads, depth, rank = weights.uk.shape
    dtype = weights.uk.dtype
    rope = sin.shape[-1]
    c = _product(x, weights.dq, scales.x, scales.w_dq, "weight_dq")
    c = rms_norm(c, weights.gamma_cq, epsilons[0])[0] * factors[0]
    if weights.uq_qr.dtype == torch.int8:
        smooth = 1 if scales.smooth_cq is None else scales.smooth_cq.float()
        norm, norm_scale = dynamic_int8(c * smooth)
    else:
        norm, norm_scale = c.to(dtype), torch.empty(0)
    queries = _product(norm, weights.uq_qr, norm_scale, scales.w_uq_qr, "weight_uq_qr").view(-1, heads, depth + rope)
    nope = queries[..., :depth].to(dtype).transpose(0, 1)  # [N, T, D]
    query = _bmm(nope, weights.uk).transpose(0, 1)  # [T, N, Hckv]
    query_rope = turned(queries[..., depth:], cos.unsqueeze(1), sin.unsqueeze(1), "interleave-half").to(dtype)
    query_scale = torch.empty(0)
    if quantise_query:
        query, query_scale = dynamic_int8(query.float())
        assert scales.ckv is not None
        query_rope = (query_rope.float() * scales.ckv.float() / query_scale).to(dtype)
    latent = _product(x, weights.dkv_kr, scales.x, scales.w_dkv_kr, "weight_dkv_kr")
    ckv = rms_norm(latent[:, :rank], weights.gamma_ckv, epsilons[1])[0] * factors[1]
    ckr = turned(latent[:, rank:], cos, sin, "interleave-half")
    rows = ckv.to(dtype) if scales.ckv is None else to_int8(ckv * scales.ckv.float())
    rope_rows = ckr.to(dtype) if scales.ckr is None else to_int8(ckr * scales.ckr.float())
    return Queries(query, query_rope, query_scale, norm, norm_scale), rows, rope_rows
