"""`npu_apply_rotary_pos_emb(query, key, cos, sin, layout="BSND", rotary_mode="half")`: query and key turned, both in place.

    BSND, BSH  query [B, S, Nq, D]   key [B, S, Nk, D]   cos, sin [B or 1, S, 1, D]
    SBND       [S, B, N, D]          BNSD [B, N, S, D] with cos, sin [B or 1, 1, S, D]          TND [T, N, D] with [T, 1, D]

rotary_mode half, interleave or quarter, as in `rotation`. The results are the arguments themselves. Where cos and sin are shorter than
D, their length is what is turned, and the rest stays. Source: the operator's page in the torch_npu documentation; the document of
aclnnApplyRotaryPosEmbV2 (ops-transformer); op-plugin's C++ for the results' identity. Float32 inside, rounded once.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.position.rotation import turned

LAYOUTS = ("BSND", "BSH", "SBND", "BNSD", "TND")
_GE_LAYOUTS = {1: "BSND", 2: "SBND", 3: "BNSD", 4: "TND"}


def apply_rotary_pos_emb(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, layout: str = "BSND", rotary_mode: str = "half"
) -> tuple[Tensor, Tensor]:
    """query and key, changed in place. Raises ValueError for a layout, mode or shape that the document excludes."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if rotary_mode not in ("half", "interleave", "quarter"):
        raise ValueError(f"rotary_mode must be half, interleave or quarter, got {rotary_mode!r}")
    for name, x in (("query", query), ("key", key)):
        if x.dim() != cos.dim() or cos.shape != sin.shape or cos.shape[-1] > x.shape[-1]:
            raise ValueError(
                f"cos and sin must have one shape, of {x.dim()} dimensions as {name} and no longer than its last, got "
                f"{list(cos.shape)} and {list(sin.shape)} with {name} {list(x.shape)}"
            )
    for x in (query, key):
        part = x[..., : cos.shape[-1]]
        part.copy_(turned(part, cos, sin, rotary_mode))
    return query, key


def _ge_apply_rotary_pos_emb(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, layout: int = 1, rotary_mode: str = "half"
) -> tuple[Tensor, Tensor]:
    if layout not in _GE_LAYOUTS:
        raise ValueError(f"layout must be one of {_GE_LAYOUTS}, got {layout}")
    return apply_rotary_pos_emb(query, key, cos, sin, _GE_LAYOUTS[layout], rotary_mode)


OPERATOR = of_torch_npu(
    "npu_apply_rotary_pos_emb",
    apply_rotary_pos_emb,
    ge=[GeKernel("ApplyRotaryPosEmb", _ge_apply_rotary_pos_emb, assigns=("query", "key"))],
)
