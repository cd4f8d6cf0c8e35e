"""`npu_nsa_compress(input, weight, compress_block_size, compress_stride, *, actual_seq_len)`: keys of native sparse attention, compressed.

    input [T, N, D] float16 or bfloat16   weight [compress_block_size, N] like input   actual_seq_len: where each sequence ends
    -> [M, N, D]: of each sequence the windows of compress_block_size tokens, compress_stride apart, that fit in it, each summed with the
       weights; of a sequence shorter than a window none

npu_nsa_compress_grad takes the gradient [M, N, D] and gives those of input and weight. Float32, rounded once. torchair lowers neither.

Sources: the document of aclnnNsaCompress in ops-transformer; the tests of both operators in op-plugin.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.attention.layouts import Packed
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check, _check_grad = Checks("npu_nsa_compress"), Checks("npu_nsa_compress_grad")
_FLOATS = (torch.float16, torch.bfloat16)


def nsa_compress(
    x: Tensor,
    weight: Tensor,
    compress_block_size: int,
    compress_stride: int,
    *,
    actual_seq_len: Sequence[int] | None = None,
) -> Tensor:
    """The compressed tokens, as the module's document says. Raises ValueError on arguments that it excludes."""
    tokens = _windows(_check, x, weight, compress_block_size, compress_stride, actual_seq_len)
    return (x.float()[tokens] * weight.float().unsqueeze(-1)).sum(1).to(x.dtype)


def nsa_compress_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    compress_block_size: int,
    compress_stride: int,
    *,
    actual_seq_len: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of input and weight."""
    tokens = _windows(_check_grad, x, weight, compress_block_size, compress_stride, actual_seq_len)
    if tuple(grad.shape) != (len(tokens), *x.shape[1:]):
        _check_grad.refuse("grad", f"of shape {[len(tokens), *x.shape[1:]]}", f"shape {tuple(grad.shape)}")
    wide = grad.float().unsqueeze(1)
    of_window = (wide * weight.float().unsqueeze(-1)).flatten(0, 1)
    of_input = torch.zeros(x.shape).index_add_(0, tokens.flatten(), of_window)
    return of_input.to(x.dtype), (wide * x.float()[tokens]).sum((0, 3)).to(weight.dtype)


def _windows(check: Checks, x: Tensor, weight: Tensor, size: int, stride: int, ends: Sequence[int] | None) -> Tensor:
    """The tokens of each window, [M, compress_block_size]."""
    check.dtype("input", x, _FLOATS)
    check.dtype("weight", weight, (x.dtype,))
    check.rank("input", x, (3,), "[T, N, D]")
    if stride < 1 or size < stride:
        check.refuse("compress_stride", f"from 1 to compress_block_size, {size}", stride)
    if tuple(weight.shape) != (size, x.shape[1]):
        check.refuse("weight", f"of shape [{size}, {x.shape[1]}]", f"shape {tuple(weight.shape)}")
    if ends is None:
        check.refuse("actual_seq_len", "given: where each sequence ends", None)
    lengths = Packed(check, "actual_seq_len", list(ends), x.shape[0]).lengths
    counts = ((lengths - size) // stride + 1).clamp_min(0)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(counts) + (torch.arange(len(first)) - first) * stride
    return starts[:, None] + torch.arange(size)


OPERATOR = of_torch_npu("npu_nsa_compress", nsa_compress)
GRADIENT_OPERATOR = of_torch_npu("npu_nsa_compress_grad", nsa_compress_grad)
