"""The way back to source-rank order against float argsort and index_select, on CPU tensors.

python benchmarks/un_routing.py [--quick]
"""

from __future__ import annotations

from collections.abc import Iterator

import measure
import torch
from peers import make, sorted_back

import moe_graph

SMALL, LARGE = (8, 64, 256, 1024), 65536
CHUNKS = ((8, 8), (16, 16), (16, 256))


def rows() -> Iterator[measure.Row]:
    """A row for each number of tokens and of chunks, with H 1024 in bfloat16 (256 for the large number of tokens)."""
    torch.manual_seed(0)
    for count in (*SMALL, LARGE):
        for ranks, experts in CHUNKS:
            tokens, counts, _ = make(count, 256 if count == LARGE else 1024, ranks, experts, torch.bfloat16)
            routed = moe_graph.moe_re_routing(tokens, counts)
            times = measure.times(
                {
                    "back": lambda r=routed, c=counts: moe_graph.moe_un_routing(r.permute_tokens, c),
                    "sorted": lambda r=routed: sorted_back(r.permute_tokens, r.permute_token_idx),
                }
            )
            what = f"un-routing, A {count}, N x E {ranks} x {experts}"
            yield times.row(what, "back", "sorted", 1.0 if count == LARGE else 1.5)


if __name__ == "__main__":
    measure.main("un-routing on the CPU against float argsort and index_select", rows)
