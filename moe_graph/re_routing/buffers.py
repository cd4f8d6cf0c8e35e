"""Validation of the `out=` buffers of `moe_graph.moe_re_routing`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moe_graph.foundation import compat, contract
from moe_graph.foundation.contract import MoeReRoutingOutput
from moe_graph.meta import fake_re_routing


def _refuse(name: str, allowed: str, got: object) -> None:
    raise ValueError(f"{contract.NAME}: out.{name} must {allowed}, got {got}")


def has_memory(x: Tensor) -> bool:
    """Is there memory behind the tensor? Not while tracing, under FakeTensorMode and on the meta device."""
    return not compat.is_compiling() and x.untyped_storage().device.type != "meta"


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Do the byte ranges of two tensors meet? `a` is contiguous; the range of `b` runs from its first to its last element."""
    if not a.numel() or not b.numel() or a.device != b.device:
        return False
    length = sum((size - 1) * stride for size, stride in zip(b.shape, b.stride())) + 1
    a_end, b_end = a.data_ptr() + a.numel() * a.element_size(), b.data_ptr() + length * b.element_size()
    return a.data_ptr() < b_end and b.data_ptr() < a_end


def check_buffers(
    out: Sequence[Tensor | None], tokens: Tensor, expert_token_num_per_rank: Tensor, **arguments: Any
) -> None:
    """Raise ValueError unless `out` holds four buffers (or None) that the outputs of this call fit into exactly.

    The expected shapes and dtypes are those of the fake implementation, which also validates the arguments themselves.
    """
    if len(out) != len(MoeReRoutingOutput._fields):
        raise ValueError(
            f"{contract.NAME}: out must hold a buffer or None for each of {', '.join(MoeReRoutingOutput._fields)}, "
            f"got {len(out)}"
        )
    inputs = {"tokens": tokens, "expert_token_num_per_rank": expert_token_num_per_rank}
    if arguments.get("per_token_scales") is not None:
        inputs["per_token_scales"] = arguments["per_token_scales"]
    if torch.is_grad_enabled() and any(
        x.requires_grad for x in (*inputs.values(), *[x for x in out if x is not None and _is_tensor(x)])
    ):
        raise ValueError(
            f"{contract.NAME}: out= does not support automatic differentiation, but a tensor requires grad"
        )

    for name, x in inputs.items():
        if x.is_quantized:
            _refuse("permute_tokens", f"be None for quantized {name} (a buffer has a scale of its own)", x.dtype)
    on_meta = {name: x.to("meta") for name, x in inputs.items()}
    expected = fake_re_routing(**{**arguments, **on_meta})
    others = dict(inputs)
    for name, buffer, like in zip(MoeReRoutingOutput._fields, out, expected):
        if buffer is None:
            continue
        if not _is_tensor(buffer):
            _refuse(name, "be a tensor or None", type(buffer).__name__)
        if buffer.shape != like.shape:
            _refuse(name, f"have shape {tuple(like.shape)}", tuple(buffer.shape))
        if buffer.dtype != like.dtype:
            _refuse(name, f"have dtype {like.dtype}", buffer.dtype)
        if buffer.device != tokens.device:
            _refuse(name, f"be on the device of tokens, {tokens.device}", buffer.device)
        if not buffer.is_contiguous():
            _refuse(name, "be contiguous", f"strides {buffer.stride()}")
        if has_memory(buffer):  # while tracing, functionalization keeps writes apart
            if buffer.is_conj() or buffer.is_neg():
                _refuse(name, "hold its values as they are", "a conjugated or negated view")
            for other, tensor in others.items():
                if _share_memory(buffer, tensor):
                    _refuse(name, f"share no memory with {other}", "an overlap")
        others[f"out.{name}"] = buffer


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor)
