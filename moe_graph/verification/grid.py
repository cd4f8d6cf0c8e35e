"""The calls that `verify` makes: every dtype and mode at a few shapes, in a fixed order and from a fixed seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_graph.foundation import compat, contract, product

_FLOAT8 = [name for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name)]
_E8M0 = hasattr(torch, "float8_e8m0fnu")


@dataclass(frozen=True)
class Mode:
    """What of a call does not depend on its sizes.

    dtype   name of a torch dtype            scales  None, "A", "A,S" or "A,K/64,2"
    expert_token_num_type, idx_type, tokens_dtype   the operator's attributes
    """

    dtype: str
    scales: str | None = None
    expert_token_num_type: int = contract.COUNT
    idx_type: int = contract.GATHER
    tokens_dtype: int | None = None

    def __str__(self) -> str:
        parts = [contract.TOKENS_DTYPES.get(self.tokens_dtype or 0, self.dtype)]
        if self.scales is not None:
            parts.append(f"scales [{self.scales}]")
        if self.expert_token_num_type == contract.CUMSUM:
            parts.append("cumsum")
        if self.idx_type == contract.SCATTER:
            parts.append("scatter")
        return ", ".join(parts)


@dataclass(frozen=True)
class Shape:
    """A tokens of length H from N ranks to E experts. `skew`: the larger, the more of the N x E chunks are empty."""

    tokens: int
    hidden: int
    ranks: int
    experts: int
    skew: float = 1.0

    def __str__(self) -> str:
        return f"A {self.tokens}, H {self.hidden}, N x E {self.ranks} x {self.experts}"


def modes(quick: bool) -> list[Mode]:
    """The modes: the kernel's own dtypes first, then those the converter composes, then scales, cumsum and scatter."""
    own = [Mode("int8", "A"), Mode("bfloat16"), Mode("float16")]
    if quick:
        return [
            *own,
            Mode("float32"),
            Mode("int8", "A", idx_type=contract.SCATTER),
            Mode("bfloat16", None, contract.CUMSUM),
        ]
    others = [Mode(name) for name in ("float32", "float64", "uint8", "int16", "int32", "int64", "bool", *_FLOAT8)]
    has_stored = compat.has_argument(contract.operator(), "tokens_dtype")  # older torch_npu's have it not
    stored = [Mode("uint8", tokens_dtype=number) for number in contract.TOKENS_DTYPES if has_stored]
    scales = [Mode("int8"), Mode("int8", "A,S"), Mode("bfloat16", "A")]
    if _E8M0 and _FLOAT8:
        scales.append(Mode(_FLOAT8[0], "A,K/64,2"))
    attributes = [
        Mode("int8", "A", expert_token_num_type, idx_type)
        for expert_token_num_type in (contract.CUMSUM, contract.COUNT)
        for idx_type in (contract.GATHER, contract.SCATTER)
        if (expert_token_num_type, idx_type) != (contract.COUNT, contract.GATHER)
    ]
    return [*own, *others, *stored, *scales, *attributes]


def shapes(quick: bool, simulated: bool) -> list[Shape]:
    """The shapes. The document's own (A 16384, H 7168) is left to devices: its time says nothing about a simulated one."""
    small = [Shape(10, 8, 2, 3), Shape(300, 128, 8, 64, skew=3.0)]
    if quick:
        return small
    more = [Shape(0, 8, 2, 3), Shape(1, 8, 1, 1), Shape(64, 512, 16, 256), Shape(17, 16400, 4, 4)]
    return [*small, *more, Shape(1024, 2048, 16, 16) if simulated else Shape(16384, 7168, 16, 16)]


def served(mode: Mode, shape: Shape) -> bool:
    """Does the document of the current product say that its kernel takes this call as it is?"""
    limits = product.current_product()
    tokens, _, arguments = inputs(mode, Shape(1, 1, 1, 1))
    lacks = product.unsupported(limits, tokens, **arguments)
    return limits.fits(shape.hidden) and not (lacks.token_dtype or lacks.scales or lacks.scatter or lacks.cumsum)


def inputs(mode: Mode, shape: Shape, seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Tokens [A, H], int32 counts [N, E] and keyword arguments of a call, on the CPU; tokens and scales are random bytes."""
    generator = torch.Generator().manual_seed(seed)
    arguments: dict[str, Any] = {}
    if mode.scales is not None:
        sizes, dtype = {
            "A": ((shape.tokens,), torch.float32),
            "A,S": ((shape.tokens, 3), torch.float32),
            "A,K/64,2": ((shape.tokens, 2, 2), getattr(torch, "float8_e8m0fnu", torch.uint8)),
        }[mode.scales]
        arguments["per_token_scales"] = _random(sizes, dtype, generator)
    if mode.expert_token_num_type != contract.COUNT:
        arguments["expert_token_num_type"] = mode.expert_token_num_type
    if mode.idx_type != contract.GATHER:
        arguments["idx_type"] = mode.idx_type
    if mode.tokens_dtype is not None:
        arguments["tokens_dtype"] = mode.tokens_dtype
    tokens = _random((shape.tokens, shape.hidden), getattr(torch, mode.dtype), generator)
    return tokens, _counts(shape, generator), arguments


def _random(sizes: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype == torch.bool:
        return torch.randint(0, 2, sizes, generator=generator).bool()
    width = torch.empty((), dtype=dtype).element_size()
    data = torch.randint(0, 256, (*sizes[:-1], sizes[-1] * width), dtype=torch.uint8, generator=generator)
    return data.view(dtype)


def _counts(shape: Shape, generator: torch.Generator) -> Tensor:
    chunks = shape.ranks * shape.experts
    weights = torch.rand(chunks, generator=generator).pow(4 * shape.skew) + 1e-6
    chosen = torch.empty(0, dtype=torch.int64)
    if shape.tokens:
        chosen = torch.multinomial(weights, shape.tokens, replacement=True, generator=generator)
    return torch.bincount(chosen, minlength=chunks).view(shape.ranks, shape.experts).to(torch.int32)
