"""Checks that the operators of attention share, and their arguments of quantised keys and values. Errors are `Checks`'."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Optional

import torch
from torch import Tensor

from moe_graph.operators.attention.quantized import PER_CHANNEL, PER_TOKEN, Int8Products, Quantization
from moe_graph.operators.checks import Checks

FLOATS = (torch.float16, torch.bfloat16)
Pair = tuple[Optional[Quantization], Optional[Quantization]]


def check_heads(check: Checks, name: str, heads: int, key_value_heads: int) -> None:
    """At least one head, and a whole number of them for each of key and value."""
    if heads < 1:
        check.refuse(name, "at least 1", heads)
    if key_value_heads < 0 or (key_value_heads and heads % key_value_heads):
        check.refuse("num_key_value_heads", f"0 or a divisor of {name}, {heads}", key_value_heads)


def check_modes(check: Checks, sparse_mode: int, allowed: Collection[int], inner_precise: int) -> None:
    """A sparse mode that the operator has, and inner_precise."""
    check.value("sparse_mode", sparse_mode, allowed)
    check.value("inner_precise", inner_precise, range(4))


def together(check: Checks, **arguments: Tensor | None) -> None:
    """All given or none."""
    missing = [name for name, tensor in arguments.items() if tensor is None]
    if 0 < len(missing) < len(arguments):
        check.refuse(
            missing[0], f"given together with {', '.join(name for name in arguments if name not in missing)}", None
        )


def separate(
    check: Checks, scales: Mapping[str, Tensor | None], offsets: Sequence[Tensor | None], modes: Sequence[int]
) -> Pair:
    """Keys and values with scales, offsets and modes of their own. Modes are alike, but for keys by channel and values by token."""
    together(check, **scales)
    together(check, **{name.replace("scale", "offset"): offset for name, offset in zip(scales, offsets)})
    if modes[0] != modes[1] and tuple(modes) != (PER_CHANNEL, PER_TOKEN):
        check.refuse("the quantization modes of key and value", "alike, or 0 and 1", tuple(modes))
    key, value = (
        None if scale is None else Quantization(name, scale, offset, mode)
        for (name, scale), offset, mode in zip(scales.items(), offsets, modes)
    )
    return key, value


def combined(check: Checks, scale: Tensor, offset: Tensor | None, mode: int) -> Pair:
    """antiquant_scale and antiquant_offset, which hold the keys' and the values' in their first size, 2."""
    check.value("antiquant_mode", mode, (PER_CHANNEL, PER_TOKEN))
    for name, tensor in (("antiquant_scale", scale), ("antiquant_offset", offset)):
        if tensor is not None and (not tensor.dim() or tensor.shape[0] != 2):
            check.refuse(name, "of first size 2, keys and values", f"shape {tuple(tensor.shape)}")
    offsets = (None, None) if offset is None else (offset[0], offset[1])
    return (
        Quantization("antiquant_scale", scale[0], offsets[0], mode),
        Quantization("antiquant_scale", scale[1], offsets[1], mode),
    )


def int8_products(check: Checks, query: Tensor, scales: Mapping[str, Tensor | None]) -> Int8Products | None:
    """The scales of queries of int8, which want all three; other queries none."""
    if query.dtype != torch.int8:
        for name, scale in scales.items():
            check.absent(name, scale, "which is of queries of int8")
        return None
    given = [scale for scale in scales.values() if scale is not None]
    if len(given) < len(scales):
        check.refuse(", ".join(scales), "given with a query of int8", None)
    return Int8Products(*given)


def check_dtypes(check: Checks, query: Tensor, keys_and_values: Mapping[str, Tensor], quantized: Pair) -> None:
    """Queries of 16 bits or int8; keys and values like them, or of int8 or int4 (in int32) with scales."""
    check.dtype("query", query, (*FLOATS, torch.int8))
    for (name, tensor), quantization in zip(keys_and_values.items(), quantized):
        if quantization is None:
            check.dtype(name, tensor, (query.dtype,))
        else:
            check.dtype(name, tensor, (torch.int8, torch.int32))
