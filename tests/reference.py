"""The contract of `npu_moe_re_routing` as plain loops over (rank, expert), in NumPy: the independent reference of all tests."""

from __future__ import annotations

import numpy as np
import torch


def re_routing(tokens, counts, scales=None, expert_token_num_type=1, idx_type=0):
    """tokens, counts, scales: NumPy arrays. Returns the four outputs as NumPy arrays, the second None when no scales are given."""
    ranks, experts = counts.shape
    start_of = {}
    position = 0
    for rank in range(ranks):  # the source: rank-major
        for expert in range(experts):
            start_of[rank, expert] = position
            position += int(counts[rank, expert])
    assert position == len(tokens)

    gather = []
    for expert in range(experts):  # the destination: expert-major, then rank, then order of arrival
        for rank in range(ranks):
            start = start_of[rank, expert]
            gather.extend(range(start, start + int(counts[rank, expert])))
    scatter = [0] * len(gather)
    for destination, source in enumerate(gather):
        scatter[source] = destination

    per_expert = []
    for expert in range(experts):
        total = sum(int(counts[rank, expert]) for rank in range(ranks))
        before = per_expert[-1] if per_expert and expert_token_num_type == 0 else 0
        per_expert.append(before + total)
    rows = np.array(gather, dtype=np.int64)
    return (
        tokens[rows],
        None if scales is None else scales[rows],
        np.array(scatter if idx_type == 1 else gather, dtype=np.int32),
        np.array(per_expert, dtype=counts.dtype),
    )


def as_bytes(x: torch.Tensor) -> np.ndarray:
    """A tensor [A, ...] of any dtype as bytes [A, row bytes], for comparison to the bit."""
    x = x.detach().cpu().contiguous()
    row = x.element_size() * (x[0].numel() if len(x) else 1)
    return x.view(-1).view(torch.uint8).numpy().reshape(len(x), row if len(x) else 0)


def as_operator(
    tokens, expert_token_num_per_rank, *, per_token_scales=None, expert_token_num_type=1, idx_type=0, tokens_dtype=None
):
    """The operator by the reference, on CPU tensors; None where no scales are given, for their values are open."""
    outputs = re_routing(
        as_bytes(tokens),
        expert_token_num_per_rank.numpy(),
        None if per_token_scales is None else as_bytes(per_token_scales),
        expert_token_num_type,
        idx_type,
    )
    made = [None if output is None else torch.from_numpy(output) for output in outputs]
    for at, source in enumerate((tokens, per_token_scales)):
        if source is not None:
            made[at] = made[at].view(-1).view(source.dtype).view(source.shape)
    return tuple(made)


def assert_matches(outputs, tokens, counts, scales=None, expert_token_num_type=1, idx_type=0):
    """Assert that four output tensors are, bit for bit, what the reference makes of the input tensors."""
    expected = re_routing(
        as_bytes(tokens),
        counts.cpu().numpy(),
        None if scales is None else as_bytes(scales),
        expert_token_num_type,
        idx_type,
    )
    permute_tokens, permute_scales, index, num = outputs
    assert permute_tokens.dtype == tokens.dtype and permute_tokens.shape == tokens.shape
    np.testing.assert_array_equal(as_bytes(permute_tokens), expected[0])
    if scales is None:
        assert permute_scales.dtype == torch.float32 and permute_scales.shape == tokens.shape[:1]
    else:
        assert permute_scales.dtype == scales.dtype and permute_scales.shape == scales.shape
        np.testing.assert_array_equal(as_bytes(permute_scales), expected[1])
    assert index.dtype == torch.int32
    np.testing.assert_array_equal(index.cpu().numpy(), expected[2])
    assert num.dtype == counts.dtype
    np.testing.assert_array_equal(num.cpu().numpy(), expected[3])
