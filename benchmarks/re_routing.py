"""The eager fallback against its peers on CPU tensors.

    python benchmarks/re_routing.py [--quick]

Peers: `tokens.clone()` (the cost of touching fresh pages once), split-and-cat by chunks with the counts on the host, `copy_` into a warm
buffer. The smallest call is in microseconds.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator

import measure
import torch
from peers import make, split_and_cat

import moe_graph

DOCUMENT = (16384, 7168, 16, 16)
DECODE_TOKENS = (8, 64, 256, 1024)
DECODE_CHUNKS = ((8, 8), (16, 16), (16, 256))


def peak_memory() -> float:
    """Peak memory of one call at the document's shapes beyond inputs, in multiples of the tokens' bytes (1 is the output itself)."""
    tokens, counts, scales = make(*DOCUMENT, torch.int8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.ops.npu.npu_moe_re_routing(tokens, counts, per_token_scales=scales)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / tokens.numel()


def document_shapes() -> Iterator[measure.Row]:
    """A 16384, H 7168, N x E 16 x 16, int8, with scales."""
    tokens, counts, scales = make(*DOCUMENT, torch.int8)
    operator = torch.ops.npu.npu_moe_re_routing
    routed = moe_graph.moe_re_routing(tokens, counts, per_token_scales=scales)
    warm = torch.empty_like(tokens)
    times = measure.times(
        {
            "fallback": lambda: operator(tokens, counts, per_token_scales=scales),
            "clone": tokens.clone,
            "split": lambda: split_and_cat(tokens, counts),
            "out": lambda: moe_graph.moe_re_routing(tokens, counts, per_token_scales=scales, out=routed),
            "copy_": lambda: warm.copy_(tokens),
        },
        block=0,
    )
    yield times.row("re-routing, document's shapes, of clone()", "fallback", "clone", 1.1)
    yield times.row("the same, of split-and-cat", "fallback", "split", 1.1)
    yield times.row("the same with out=, of copy_", "out", "copy_", 1.1)


def decode_shapes() -> Iterator[measure.Row]:
    """H 1024, bfloat16."""
    operator = torch.ops.npu.npu_moe_re_routing
    for count in DECODE_TOKENS:
        for ranks, experts in DECODE_CHUNKS:
            tokens, counts, _ = make(count, 1024, ranks, experts, torch.bfloat16)
            calls = {"fallback": lambda t=tokens, c=counts: operator(t, c)}
            calls["split"] = lambda t=tokens, c=counts: split_and_cat(t, c)
            times = measure.times(calls)
            yield times.row(f"re-routing, A {count}, N x E {ranks} x {experts}", "fallback", "split", 1.0)
            if (count, ranks) == (8, 8):
                figure = times.median("fallback") * 1e6
                yield measure.Row("re-routing itself at A 8", figure, "us", 20.0)


def rows() -> Iterator[measure.Row]:
    """Memory first: the peak of a process only grows."""
    torch.manual_seed(0)
    yield measure.Row("peak memory of a call, document's shapes", peak_memory(), "x", 1.1, "of the tokens' bytes")
    yield from document_shapes()
    yield from decode_shapes()


if __name__ == "__main__":
    measure.main("re-routing on the CPU", rows)
