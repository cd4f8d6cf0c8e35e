"""npu_moe_distribute_dispatch_v2 and combine_v2 over gloo on the CPU: one process here, and several that check each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from moe_graph.foundation import compat
from versions import opcheck

WORKER = Path(__file__).parents[1] / "family" / "distribute_worker.py"
dispatch, combine = torch.ops.npu.npu_moe_distribute_dispatch_v2, torch.ops.npu.npu_moe_distribute_combine_v2


def run_ranks(folder, size, *what, may_die=()):
    """The results of each rank's process; None for one that died."""
    processes = []
    for rank in range(size):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(WORKER.parents[1]),
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        }
        command = [sys.executable, str(WORKER), "cpu", str(folder / "rendezvous"), str(folder), *what]
        with open(folder / f"{rank}.log", "w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, code in enumerate(codes):
        assert code == 0 or rank in may_die, (folder / f"{rank}.log").read_text()[-3000:]
    files = [folder / f"{rank}.json" for rank in range(size)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_equal_a_dense_layer(tmp_path, size):
    results = run_ranks(tmp_path, size)
    failed = {
        f"rank {rank}: {case}": text
        for rank, cases in enumerate(results)
        for case, text in cases.items()
        if text != "ok"
    }
    assert not failed, "\n".join(f"{name}\n{text}" for name, text in failed.items())
    assert all(len(cases) >= 13 for cases in results)


@pytest.mark.slow
def test_a_killed_rank_is_an_error_in_the_others_within_the_groups_timeout(tmp_path):
    results = run_ranks(tmp_path, 3, "lost", may_die=(1,))
    assert results[1] is None
    for rank in (0, 2):
        assert results[rank]["seconds"] is not None and results[rank]["seconds"] < 60, results[rank]


@pytest.fixture(scope="module")
def group():
    """A group of this process alone: its name."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield compat.group_name(dist.group.WORLD)
    dist.destroy_process_group()


X, IDS = torch.randn(3, 4).half(), torch.tensor([[0, 1], [1, 2], [3, 0]]).int()
WEIGHTS = torch.rand(3, 2)


def test_one_rank(group):
    expand_x, _, _, token_nums, recv_counts, tp_counts, expand_scales = outputs = dispatch(X, IDS, group, 1, 0, 4)
    assert torch.equal(expand_x, X[[0, 2, 0, 1, 1, 2]])
    assert token_nums.tolist() == [2, 2, 1, 1] and recv_counts.tolist() == [2, 4, 5, 6]
    assert tp_counts.shape == expand_scales.shape == (0,)
    y = combine(expand_x, IDS, outputs[2], recv_counts, WEIGHTS, group, 1, 0, 4)
    torch.testing.assert_close(y, (X.float() * WEIGHTS.sum(1, keepdim=True)).half())


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"quant_mode": 2, "scales": torch.rand(4, 4)},
        {"expert_scales": WEIGHTS, "tp_world_size": 1},
        {"global_bs": 8, "x_active_mask": torch.tensor([True, True, False])},
    ],
)
def test_fake_agrees(group, keywords):
    outputs = dispatch(X, IDS, group, 1, 0, 4, **keywords)
    shared = {
        name: value for name, value in keywords.items() if name in ("global_bs", "x_active_mask", "tp_world_size")
    }
    rest = (IDS, outputs[2], outputs[4], WEIGHTS, group, 1, 0, 4)
    y = combine(outputs[0].to(X.dtype), *rest, **shared)
    with FakeTensorMode() as mode:

        def moved(value):
            return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

        fakes = dispatch(
            moved(X), moved(IDS), group, 1, 0, 4, **{name: moved(value) for name, value in keywords.items()}
        )
        fake_y = combine(
            fakes[0].to(X.dtype), *map(moved, rest), **{name: moved(value) for name, value in shared.items()}
        )
    assert [(f.shape, f.dtype) for f in fakes] == [(o.shape, o.dtype) for o in outputs]
    assert (fake_y.shape, fake_y.dtype) == (y.shape, y.dtype)


def test_opcheck(group):
    keywords = {"x_active_mask": torch.tensor([True, True, False]), "quant_mode": 2}
    opcheck(dispatch.default, (X, IDS, group, 1, 0, 4), keywords)
    outputs = dispatch(X, IDS, group, 1, 0, 4)
    opcheck(combine.default, (outputs[0], IDS, outputs[2], outputs[4], WEIGHTS, group, 1, 0, 4))


@pytest.mark.parametrize(
    ("rank", "keywords", "shape"),
    [
        (0, {"shared_expert_rank_num": 2}, (3 * 4, 1, 8)),  # a shared rank: 8 ranks, 2 copies of one expert
        (1, {"shared_expert_num": 2, "shared_expert_rank_num": 2, "global_bs": 40}, (5 * 8, 1, 8)),
        (2, {"shared_expert_rank_num": 2}, (3 * 8 * 2, 2, 16)),
        (7, {"global_bs": 40}, (40 * 2, 2, 16)),
        (7, {"expert_scales": WEIGHTS}, (24 * 2, 2, 16 + 24 * 2 * 2)),
    ],
)
def test_fake_of_eight_ranks(rank, keywords, shape):
    experts = 12 if "shared_expert_rank_num" in keywords else 16
    with FakeTensorMode(allow_non_fake_inputs=True):
        outputs = dispatch(X, IDS, "any name", 8, rank, experts, **keywords)
    rows, local, counts = shape
    assert outputs[0].shape == (rows, 4) and outputs[1].shape == (rows,) and outputs[2].shape == (128 * rows,)
    assert outputs[3].shape == (local,) and outputs[4].shape == (counts,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X.float()}, "x must be of dtype torch.float16 or torch.bfloat16"),
        ({"expert_ids": IDS.long()}, "expert_ids must be of dtype torch.int32"),
        ({"expert_ids": IDS[:2]}, r"expert_ids must be of BS = 3, x's first size, got shape \(2, 2\)"),
        ({"expert_ids": IDS + 1}, "expert_ids must be from 0 to 3"),
        ({"group_ep": "nobody"}, "group_ep must be the name of a process group, .*, got 'nobody'"),
        ({"group_ep": ""}, "group_ep must be a name of 1 to 127 characters"),
        ({"ep_world_size": 2}, "ep_world_size must be 1, the size of group"),
        ({"ep_rank_id": 1}, "ep_rank_id must be from 0 to 0, got 1"),
        ({"moe_expert_num": 0}, "moe_expert_num must be a positive multiple of the 1 ranks"),
        ({"shared_expert_num": 2}, "shared_expert_num must be 0 or 1 with shared_expert_rank_num 0, got 2"),
        ({"shared_expert_rank_num": 1}, "shared_expert_rank_num must be from 0 to 0, got 1"),
        (
            {"ep_world_size": 4, "shared_expert_num": 2, "shared_expert_rank_num": 3},
            "must be a multiple of 2 shared experts",
        ),
        ({"quant_mode": 1}, "quant_mode must be one of 0, 2, got 1"),
        ({"scales": torch.rand(4, 4)}, "scales must be None with quant_mode 0"),
        ({"scales": torch.rand(5, 4), "quant_mode": 2}, r"scales must be of shape \(4, 4\), got shape \(5, 4\)"),
        ({"tp_world_size": 2}, "tp_world_size must be 0 or 1"),
        ({"zero_expert_num": -1}, "zero_expert_num must be 0 or more, got -1"),
        ({"expert_ids": IDS + 2, "zero_expert_num": 1}, "expert_ids must be from 0 to 4"),
        ({"elastic_info": IDS}, r"elastic_info must be of shape \[6\]"),
        (
            {"elastic_info": torch.tensor([1, 1, 0, 3, 0, 0]).int()},
            "elastic_info must be one that leaves each rank its number",
        ),
        ({"elastic_info": torch.tensor([1, 1, 0, 4, -1, 0]).int()}, r"elastic_info must be \[1, ranks left"),
        ({"performance_info": torch.zeros(1)}, "performance_info must be of dtype torch.int64"),
        ({"y_dtype": 290}, "y_dtype must be None or torch.float16, got torch_npu.hifloat8"),
        ({"x": X.view(torch.int32)}, "scales must be given with x of int32"),
        ({"comm_alg": "ring"}, "comm_alg must be one of '', 'fullmesh'"),
        ({"global_bs": 2}, r"x must be of BS <= 2, global_bs of each rank, got shape \(3, 4\)"),
        ({"x_active_mask": torch.tensor([False, True, True])}, "x_active_mask must be true before false"),
        ({"x_active_mask": torch.tensor([True])}, r"x_active_mask must be of shape \[BS\] or \[BS, K\]"),
        ({"expert_token_nums_type": 2}, "expert_token_nums_type must be one of 0, 1, got 2"),
    ],
)
def test_dispatch_errors(group, changes, message):
    call = {
        "x": X,
        "expert_ids": IDS,
        "group_ep": group,
        "ep_world_size": 1,
        "ep_rank_id": 0,
        "moe_expert_num": 4,
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        dispatch(**call)


COUNTS = torch.tensor([2, 4, 5, 6]).int()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expand_x": torch.zeros(6, 4)}, "expand_x must be of dtype torch.float16 or torch.bfloat16"),
        ({"ep_send_counts": COUNTS[:3]}, r"ep_send_counts must be of shape \[4\] or longer, got shape \(3,\)"),
        ({"ep_send_counts": COUNTS * 2}, "ep_send_counts must be the dispatch's ep_recv_counts, up to 6 rows"),
        ({"ep_send_counts": COUNTS.flip(0)}, "ep_send_counts must be the dispatch's ep_recv_counts"),
        ({"expert_scales": WEIGHTS.half()}, "expert_scales must be of dtype torch.float32"),
        ({"expert_scales": WEIGHTS[:, :1]}, r"expert_scales must be of shape \(3, 2\)"),
        ({"comm_quant_mode": 1}, "comm_quant_mode must be one of 0, 2, got 1"),
        ({"copy_expert_num": 1}, "ori_x must be given with copy_expert_num 1, got None"),
        ({"const_expert_num": 2, "ori_x": X}, "const_expert_alpha_1 must be given with const_expert_num 2, got None"),
        ({"copy_expert_num": 1, "ori_x": X[:2]}, r"ori_x must be of shape \[3, 4\], got shape \(2, 4\)"),
        ({"shared_expert_x": X[:2]}, r"shared_expert_x must be of shape \[BS, H\] = \[3, 4\]"),
        ({"shared_expert_x": X.float()}, "shared_expert_x must be of dtype torch.float16"),
    ],
)
def test_combine_errors(group, changes, message):
    call = {
        "expand_x": torch.zeros(6, 4).half(),
        "expert_ids": IDS,
        "assist_info_for_combine": torch.zeros(768).int(),
        "ep_send_counts": COUNTS,
        "expert_scales": WEIGHTS,
        "group_ep": group,
        "ep_world_size": 1,
        "ep_rank_id": 0,
        "moe_expert_num": 4,
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        combine(**call)


def test_without_a_group(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    with pytest.raises(ValueError, match="torch.distributed is not initialized"):
        dispatch(X, IDS, "0", 1, 0, 4)
