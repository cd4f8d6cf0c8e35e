"""The operator on DTensors, in two ranks over gloo: placements, values, gradients."""

from __future__ import annotations

import pytest
import torch

from expert_parallel import ranks

WORKER = """
import torch, moe_graph
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
tokens, scales, counts = torch.randn(6, 4), torch.randn(6, 2), torch.tensor([[2, 1, 0], [0, 2, 1]])
expected = moe_graph.moe_re_routing(tokens, counts, per_token_scales=scales)
whole = Replicate()
for placement, of_scales in ((whole, whole), (Shard(1), whole), (Shard(1), None), (Shard(0), None)):
    x = distribute_tensor(tokens, mesh, [placement]).requires_grad_()
    given = None if of_scales is None else distribute_tensor(scales, mesh, [of_scales])
    outputs = moe_graph.moe_re_routing(x, distribute_tensor(counts, mesh, [whole]), per_token_scales=given)
    # Rows lie where all rows must be seen, so only columns stay sharded.
    assert outputs[0].placements == ((Shard(1),) if placement == Shard(1) else (whole,)), outputs[0].placements
    if given is not None:
        assert outputs[1].placements == (of_scales,), outputs[1].placements
    for position, (got, want) in enumerate(zip(outputs, expected)):
        if position != 1 or given is not None:
            assert torch.equal(got.full_tensor(), want), (placement, position)
    outputs[0].square().sum().backward()
    assert torch.equal(x.grad.full_tensor(), 2 * tokens), placement
try:
    sharded = distribute_tensor(scales, mesh, [Shard(1)])
    moe_graph.moe_re_routing(x, distribute_tensor(counts, mesh, [whole]), per_token_scales=sharded)
except Exception as error:
    assert "per_token_scales must be replicated if it is a DTensor, got (Shard(dim=1),)" in str(error), error
else:
    raise AssertionError("sharded scales were taken")
print("agrees")
dist.destroy_process_group()
"""


def test_two_ranks(tmp_path):
    if not hasattr(pytest.importorskip("torch.distributed.tensor.experimental"), "register_sharding"):
        pytest.skip(f"torch {torch.__version__} has no register_sharding")
    (tmp_path / "worker.py").write_text(WORKER)
    assert ranks.run(tmp_path / "worker.py", 2, device="cpu").count("agrees") == 2
