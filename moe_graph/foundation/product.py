"""Ascend products and what the `MoeReRouting` kernel accepts on each.

Source: the operator's page in the torch_npu documentation and the checks of the CANN kernel. The converter asks `unsupported` whether a
call is one native node; the kernel of the simulated device has its own copy of these checks, in C, and a test holds the two together.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_graph.foundation import contract


@dataclass(frozen=True)
class Product:
    """A product family and the limits of its kernel.

    Attributes:
        name: "A2", "A3" or "950"
        soc_prefixes: how the names of its devices begin
        token_dtypes: dtypes of tokens without tokens_dtype
        tokens_dtypes: values of tokens_dtype (tokens are uint8 then)
        scale_ranks: ranks of float32 per_token_scales
        e8m0_scales: float8_e8m0 scales [A, K/64, 2], also stored as uint8
        idx_types: values of idx_type
        max_hidden: 0 < H < max_hidden
    """

    name: str
    soc_prefixes: tuple[str, ...]
    token_dtypes: frozenset[torch.dtype]
    tokens_dtypes: frozenset[int]
    scale_ranks: frozenset[int]
    e8m0_scales: bool
    idx_types: frozenset[int]
    max_hidden: int = 16384

    def fits(self, hidden: int) -> bool:
        """Can the kernel move rows of this many elements (of the dtype that travels)?"""
        return bool(0 < hidden < self.max_hidden)


_BASE = frozenset({torch.float16, torch.bfloat16, torch.int8})
_FLOAT8 = frozenset(
    getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name)
)  # torch 2.1 and newer
E8M0_DTYPES = frozenset({torch.uint8, getattr(torch, "float8_e8m0fnu", torch.uint8)})


def _a2_or_a3(name: str, *soc_prefixes: str) -> Product:
    return Product(name, soc_prefixes, _BASE, frozenset(), frozenset({1}), False, frozenset({contract.GATHER}))


PRODUCTS = {
    product.name: product
    for product in (
        _a2_or_a3("A2", "Ascend910B"),
        _a2_or_a3("A3", "Ascend910_93"),
        Product(
            "950",
            ("Ascend950", "Ascend910_95"),
            _BASE | _FLOAT8,
            frozenset(contract.TOKENS_DTYPES),
            frozenset({1, 2}),
            True,
            frozenset({contract.GATHER, contract.SCATTER}),
        ),
    )
}
_DEFAULT = "A2"
_ENVIRONMENT = "MOE_GRAPH_PRODUCT"
_SIMULATED = "MOE_GRAPH_SIM_SOC"
_chosen: str | None = None


def set_product(name: str | None) -> None:
    """Lower for this product ("A2", "A3" or "950") whatever the device says; None asks the device again."""
    global _chosen
    if name is not None and name not in PRODUCTS:
        raise ValueError(f"product must be one of {', '.join(PRODUCTS)} or None, got {name!r}")
    _chosen = name


def current_product() -> Product:
    """The product lowered for: `set_product`, else MOE_GRAPH_PRODUCT, else the device torch_npu sees, else A2 (A3 has the same rules)."""
    name = _chosen or os.environ.get(_ENVIRONMENT) or None
    if name is not None:
        if name not in PRODUCTS:
            raise ValueError(f"{_ENVIRONMENT} must be one of {', '.join(PRODUCTS)}, got {name!r}")
        return PRODUCTS[name]
    soc = _soc_name()
    for product in PRODUCTS.values():
        if soc is not None and soc.startswith(product.soc_prefixes):
            return product
    return PRODUCTS[_DEFAULT]


def _soc_name() -> str | None:
    torch_npu = sys.modules.get("torch_npu")
    if torch_npu is None:
        return None
    asked = getattr(torch_npu.npu, "get_device_name", None), os.environ.get(_SIMULATED)
    if asked not in _soc_names:
        if not torch_npu.npu.is_available():
            return None
        _soc_names[asked] = torch_npu.npu.get_device_name()
    return _soc_names[asked]


# What the device has answered; operators ask for it at every call. A device stays what it is, the simulated one is what the variable says.
_soc_names: dict[tuple[Callable[[], str] | None, str | None], str] = {}


def _scales_are_native(product: Product, scales: Tensor) -> bool:
    if scales.dtype == torch.float32:
        return scales.dim() in product.scale_ranks
    return product.e8m0_scales and scales.dtype in E8M0_DTYPES and scales.dim() == 3


@dataclass(frozen=True)
class Unsupported:
    """Which parts of a call the kernel of a product does not serve. H is apart: `Product.fits`."""

    token_dtype: bool
    scales: bool
    scatter: bool
    cumsum: bool


def unsupported(
    product: Product,
    tokens: Tensor,
    *,
    per_token_scales: Tensor | None = None,
    expert_token_num_type: int = contract.COUNT,
    idx_type: int = contract.GATHER,
    tokens_dtype: int | None = None,
) -> Unsupported:
    """What of this (valid) call the product's kernel does not serve. Reads dtypes and ranks, never a size or a value."""
    if tokens_dtype is None:
        token_dtype = tokens.dtype not in product.token_dtypes
    else:
        token_dtype = tokens_dtype not in product.tokens_dtypes
    return Unsupported(
        token_dtype=token_dtype,
        scales=per_token_scales is not None and not _scales_are_native(product, per_token_scales),
        scatter=idx_type not in product.idx_types,
        cumsum=expert_token_num_type != contract.COUNT,
    )


def refusal(product: Product, tokens: Tensor, **asked: Any) -> str:
    """The same in words, H included; "" for a call that is one launch of the kernel. `asked`: as `unsupported` takes."""
    lacks = unsupported(product, tokens, **asked)
    tokens_dtype = asked.get("tokens_dtype")
    hidden = tokens.shape[1] * (2 if tokens_dtype in (contract.FLOAT4_E2M1, contract.FLOAT4_E1M2) else 1)
    said = {
        f"tokens of {tokens.dtype if tokens_dtype is None else f'tokens_dtype={tokens_dtype}'}": lacks.token_dtype,
        f"tokens with H = {hidden}": not product.fits(hidden),
        "per_token_scales of this dtype and rank": lacks.scales,
        f"idx_type={asked.get('idx_type')}": lacks.scatter,
        f"expert_token_num_type={asked.get('expert_token_num_type')}": lacks.cumsum,
    }
    found = [what for what, is_refused in said.items() if is_refused]
    return f"the kernel of {product.name} serves no {', no '.join(found)}" if found else ""
