"""Sequences of several lengths, packed as torch_npu packs them, and the recurrent layers that read them.

torch packs [T, B, *] into the rows that hold values, the sum of the lengths. torch_npu keeps all T * B rows, with the padding in them, and
its `_pad_packed_sequence` reckons with that; so do programs that look at `PackedSequence.data`. torch's composition of a recurrent layer
reads torch's form: it gets the rows that hold values, and its output is spread over all rows again, zeros in the padding. A sequence that
was packed on the CPU and moved to the device is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _pack_padded_sequence(x: Tensor, lengths: Tensor, batch_first: bool = False) -> tuple[Tensor, Tensor]:
    """([T * B, *], batch sizes [T] on the CPU), T the longest length.

    Raises RuntimeError for what torch's own refuses: lengths that do not fit, are not sorted, or lie on the device.
    """
    if not lengths.is_cpu:
        raise RuntimeError(f"'lengths' argument should be a CPU tensor, but got {lengths.device} tensor")
    steps_and_batch = torch.empty(()).expand(*x.shape[:2], 1 if x.numel() else 0)
    _, batch_sizes = torch._pack_padded_sequence(steps_and_batch, lengths, batch_first)
    steps = x.transpose(0, 1) if batch_first else x
    return steps[: batch_sizes.numel()].reshape(-1, *x.shape[2:]), batch_sizes


def _recurrent(name: str) -> Callable[..., tuple[Tensor, ...]]:
    """A recurrent layer on packed data: (data, batch_sizes, states, ...) -> (output, states ...)."""
    overload = getattr(torch.ops.aten, name).data

    def layer(data: Tensor, batch_sizes: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        sizes = batch_sizes.cpu()
        holds_value = torch.arange(int(sizes[0])) < sizes[:, None]
        if data.size(0) == int(sizes.sum()):
            return tuple(overload.decompose(data, sizes, *args, **kwargs))
        if data.size(0) != holds_value.numel():
            raise RuntimeError(
                f"{name}: data must have {holds_value.numel()} rows by its batch sizes, got {data.size(0)}"
            )
        rows = holds_value.flatten().nonzero().flatten().to(data.device)
        output, *states = overload.decompose(data.index_select(0, rows), sizes, *args, **kwargs)
        return output.new_zeros(data.size(0), output.size(1)).index_copy(0, rows, output), *states

    return layer


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "aten::_pack_padded_sequence": _pack_padded_sequence,
    **{f"aten::{name}.data": _recurrent(name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
}
"""Operator -> what it is composed of on NPU tensors, with gradients."""
