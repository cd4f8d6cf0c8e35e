"""The serving pattern: a decode step captured for batch sizes 1, 2, 4 and 8 in one pool, replayed in any order with padding."""

from __future__ import annotations

import pytest
import torch
import torch_npu

HIDDEN, HEADS, EXPERTS, TOP_K, RANKS = 32, 2, 4, 2, 2
BLOCKS, BLOCK = 20, 16
SIZES = (1, 2, 4, 8)


class Decoder:
    """One layer: paged attention over a cache that the step writes to, then experts around re-routing. All float16."""

    def __init__(self):
        generator = torch.Generator().manual_seed(3)

        def weight(*shape):
            return (torch.randn(*shape, generator=generator) * 0.2).half().npu()

        self.embedding, self.qkv, self.gate = weight(50, HIDDEN), weight(HIDDEN, 3 * HIDDEN), weight(HIDDEN, EXPERTS)
        self.up, self.down = weight(EXPERTS, HIDDEN, 2 * HIDDEN), weight(EXPERTS, HIDDEN, HIDDEN)
        self.keys = torch.zeros(BLOCKS, BLOCK, HIDDEN).half().npu()
        self.values = torch.zeros_like(self.keys)

    def step(self, ids, slots, tables, lengths):
        """ids [B], slots [B]: where in the cache the step writes, tables [B, blocks]; lengths: a list of numbers. [B, HIDDEN]"""
        x = self.embedding[ids]
        q, k, v = (x @ self.qkv).chunk(3, dim=-1)
        self.keys.view(-1, HIDDEN).index_copy_(0, slots, k)
        self.values.view(-1, HIDDEN).index_copy_(0, slots, v)
        attention, _ = torch_npu.npu_fused_infer_attention_score(
            q.reshape(-1, 1, HIDDEN),
            self.keys,
            self.values,
            num_heads=HEADS,
            scale=(HIDDEN // HEADS) ** -0.5,
            input_layout="BSH",
            block_table=tables,
            block_size=BLOCK,
            actual_seq_lengths_kv=lengths,
        )
        return x + self.experts(x + attention.view(-1, HIDDEN))

    def experts(self, x):
        weights, chosen, rows = torch_npu.npu_moe_gating_top_k_softmax(x @ self.gate, k=TOP_K)
        copies, order, counts, _ = torch_npu.npu_moe_init_routing_v2(
            x, chosen, active_num=x.shape[0] * TOP_K, expert_num=EXPERTS, expert_tokens_num_type=1,
            expert_tokens_num_flag=True, active_expert_range=[0, EXPERTS], quant_mode=-1, row_idx_type=0,
        )  # fmt: skip
        # As if the copies had come from two ranks: the second sends none.
        counts = torch.stack([counts, torch.zeros_like(counts)])
        routed, _, _, per_expert = torch_npu.npu_moe_re_routing(copies, counts)
        up = torch_npu.npu_grouped_matmul(
            [routed], [self.up], group_list=per_expert, split_item=2, group_type=0, group_list_type=1
        )[0]
        down = torch_npu.npu_grouped_matmul(
            [torch_npu.npu_swiglu(up)],
            [self.down],
            group_list=per_expert,
            split_item=2,
            group_type=0,
            group_list_type=1,
        )[0]
        return torch_npu.npu_moe_finalize_routing(down, None, None, None, weights.half(), order, None, drop_pad_mode=2)


class Captured:
    """The step for one batch size, over inputs of its own."""

    def __init__(self, decoder, size, pool):
        self.ids = torch.zeros(size, dtype=torch.int64).npu()
        self.slots = torch.zeros(size, dtype=torch.int64).npu()
        self.tables = torch.zeros(size, 2, dtype=torch.int32).npu()
        self.graph = torch.npu.NPUGraph()
        with torch.npu.graph(self.graph, pool=pool, auto_dispatch_capture=True):
            self.out = decoder.step(self.ids, self.slots, self.tables, [1] * size)

    def run(self, ids, slots, tables, lengths):
        count, size = len(ids), len(self.ids)
        self.ids[:count].copy_(ids)
        self.slots.fill_(BLOCKS * BLOCK - 1)  # what is padded writes to the last slot, which nobody reads
        self.slots[:count].copy_(slots)
        self.tables[:count].copy_(tables)
        self.graph.replay()  # stops at the attention until its lengths are there
        self.graph.update(cpu_update_input=[{"actual_seq_lengths_kv": lengths + [1] * (size - count)}])
        return self.out[:count]


@pytest.fixture(scope="module")
def steps():
    """Requests come and go: (ids, slots, tables, lengths) of each step."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number, count in enumerate([1, 3, 8, 2, 5, 1, 4]):
        tables = torch.arange(2 * count, dtype=torch.int32).view(count, 2)
        lengths = [1 + (5 * number + 3 * at) % 25 for at in range(count)]
        slots = torch.tensor(
            [int(tables[at, (n - 1) // BLOCK]) * BLOCK + (n - 1) % BLOCK for at, n in enumerate(lengths)]
        )
        made.append((torch.randint(50, (count,), generator=generator), slots, tables, lengths))
    return made


def test_any_batch_size_in_any_order_is_eager(steps):
    eager, decoder = Decoder(), Decoder()
    pool = torch.npu.graph_pool_handle()
    graphs = {size: Captured(decoder, size, pool) for size in reversed(SIZES)}
    decoder.keys.zero_()
    decoder.values.zero_()
    for ids, slots, tables, lengths in steps:
        expected = eager.step(ids.npu(), slots.npu(), tables.npu(), lengths)
        size = next(size for size in SIZES if size >= len(ids))
        result = graphs[size].run(ids, slots, tables, lengths)
        assert torch.equal(result.cpu(), expected.cpu())
        assert torch.equal(decoder.keys[:-1].cpu(), eager.keys[:-1].cpu())
    assert {graph.graph.pool() for graph in graphs.values()} == {pool}


def test_the_host_must_not_go_on_before_the_update():
    decoder = Decoder()
    captured = Captured(decoder, 4, None)
    captured.graph.replay()
    with pytest.raises(RuntimeError, match="waits for an external event"):
        torch.npu.synchronize()
    with pytest.raises(RuntimeError, match="waits for an external event"):
        captured.out + 1
    captured.graph.update(cpu_update_input=[{"actual_seq_lengths_kv": [1] * 4}])
    torch.npu.synchronize()
    assert torch.isfinite(captured.out.cpu()).all()
