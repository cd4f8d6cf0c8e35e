"""One rank of a world without the others: sizes by a distribution of tokens, graphs that are lowered, and values that nobody knows."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch_npu
import torchair

from moe_graph.planning import one_rank, routing


def exchange(tokens=48, experts=256, top_k=4):
    """The way to the experts: what is counted here, what the others count, and the tokens that come."""
    dist.init_process_group("hccl")
    ranks = dist.get_world_size()
    x = torch.randn(tokens, 64).bfloat16().npu()
    chosen = torch.zeros(tokens, top_k, dtype=torch.int32, device="npu")
    copies, _, counts, _ = torch_npu.npu_moe_init_routing_v2(
        x,
        chosen,
        active_num=tokens * top_k,
        expert_num=experts,
        expert_tokens_num_type=1,
        expert_tokens_num_flag=True,
        quant_mode=-1,
        active_expert_range=[0, experts],
    )
    others = torch.empty_like(counts)
    dist.all_to_all_single(others, counts)
    sent, received = torch.stack([counts.view(ranks, -1).sum(1), others.view(ranks, -1).sum(1)]).tolist()
    got = x.new_empty(sum(received), 64)
    dist.all_to_all_single(got, copies, received, sent)
    return sent, received, got, others


@pytest.mark.parametrize("tokens", ["uniform", "skewed"])
@pytest.mark.parametrize("rank", [0, 7])
def test_sizes_after_an_all_to_all_are_those_of_the_distribution(tokens, rank):
    wanted = routing.distribution(tokens, 128, 256, 48, 4).reshape(128, 128, 2)
    with one_rank.alone(128, rank, tokens) as graphs:
        sent, received, got, others = exchange()
        assert sent == wanted[rank].sum(1).tolist() and received == wanted[:, rank].sum(1).tolist()
        assert got.shape == (wanted[:, rank].sum(), 64) and got.device.type == "npu"
        assert others.view(128, 2).tolist() == wanted[:, rank].tolist()
        backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
        assert torch.compile(lambda x: (x @ x.t()).relu(), backend=backend, dynamic=True)(got).shape == (len(got),) * 2
    assert [node.type for node in graphs[0].definition.op if node.type == "Relu"] == ["Relu"]


def test_a_capture_by_hand_has_shapes_and_launches_nothing():
    with one_rank.alone(128, 7):
        dist.init_process_group("hccl")
        x, received = torch.ones(4, 64).bfloat16().npu(), torch.empty(4, 64, dtype=torch.bfloat16, device="npu")
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            y = x * 2
            dist.all_reduce(y)
            (work,) = dist.batch_isend_irecv([dist.P2POp(dist.isend, y, 8), dist.P2POp(dist.irecv, received, 6)])
            work.wait()
            gathered = torch.empty(128 * 4, 64, dtype=torch.bfloat16, device="npu")
            dist.all_gather_into_tensor(gathered, received)
            total = gathered.sum(0)
        graph.replay()
        assert total.shape == (64,)
        with pytest.raises(one_rank.ValueUnknown, match="test_planning_one_rank.py"):
            total.tolist()


def test_a_value_that_nobody_knows_is_an_error_that_names_it():
    with one_rank.alone(8, 3):
        _, _, got, counts = exchange(experts=8, top_k=2)
        for read in (
            lambda: float(got.sum()),
            lambda: (counts * got[: len(counts), 0]).tolist(),
            lambda: bool((got > 0).any()),
        ):
            with pytest.raises(
                one_rank.ValueUnknown, match=r"test_planning_one_rank\.py:\d+ .* reads a value of a tensor"
            ):
                read()


def test_numbers_of_the_program_are_known_until_they_are_overwritten():
    with one_rank.alone(8, 3):
        dist.init_process_group("hccl")
        sizes = torch.arange(6, device="npu").view(2, 3)
        assert (sizes.sum(1) * 2).tolist() == [6, 24]
        sizes[0] = torch.randint(0, 5, (3,), device="npu")
        with pytest.raises(one_rank.ValueUnknown):
            sizes.tolist()
        mine = torch.full((8,), dist.get_rank(), device="npu")
        theirs = torch.empty_like(mine)
        dist.all_to_all_single(theirs, mine)  # what the others put there is theirs alone
        assert mine.tolist() == [3] * 8
        with pytest.raises(one_rank.ValueUnknown):
            theirs.tolist()


def test_there_must_be_such_a_rank():
    with pytest.raises(ValueError, match="below the world's size 4, got 4"):
        with one_rank.alone(4, 4):
            pass
