"""Collectives inside compiled graphs, on 2 and 3 ranks."""

from pathlib import Path

import pytest
import torch
import torch_npu

from expert_parallel import ranks

WORKER = Path(__file__).parent / "workers" / "graph_collectives.py"
COMMON = [
    "all_reduce sum",
    "all_reduce sum dynamic",
    "all_reduce max",
    "all_reduce bfloat16",
    "all_gather_into_tensor",
    "all_gather",
    "reduce_scatter_tensor",
    "all_to_all_single",
    "all_to_all_single uneven",
    "broadcast",
    "two groups",
    "in order",
]


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_each_collective_gives_what_the_ranks_hold(size):
    printed = ranks.run(WORKER, size, device="npu")
    names = [*COMMON, "send and recv"] if size % 2 == 0 else COMMON
    missing = [f"{name} {rank}" for name in names for rank in range(size) if f"equal {name} {rank}\n" not in printed]
    assert not missing, printed[-3000:]


FUSED = WORKER.with_name("fused_communication.py")
NAMES = [
    "all_gather_base_mm",
    "mm_reduce_scatter_base",
    "mm_all_reduce_base",
    "mm_all_reduce_base int8",
    "alltoallv_gmm",
    "gmm_alltoallv",
    "all_to_all_matmul",
    "matmul_all_to_all",
    "distribute_barrier",
    "all_to_all_quant_matmul",
    "quant_matmul_all_to_all",
    "alltoallv_quant_gmm MX",
    "alltoallv_quant_gmm hifloat8",
    "quant_gmm_alltoallv MX",
]


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])  # torchair refuses 3
def test_products_fused_with_communication(size):
    """Eager and compiled, on every rank, against the whole product."""
    printed = ranks.run(FUSED, size, device="npu")
    missing = [f"{name} {rank}" for name in NAMES for rank in range(size) if f"equal {name} {rank}\n" not in printed]
    assert not missing, printed[-3000:]


@pytest.mark.parametrize(
    "operator, modes",
    [("npu_all_to_all_quant_matmul", (7, 2)), ("npu_quant_matmul_all_to_all", (3, 2))],
)
@pytest.mark.parametrize("scale", [torch.ones(3), torch.zeros(1)], ids=["several", "one zero"])
def test_a_scale_that_is_not_served_is_refused(operator, modes, scale):
    x = torch.ones(4, 4).npu()
    wanted = rf"{operator}: common_scale must be left out, it is not served, got shape \({len(scale)},\)"
    with pytest.raises(RuntimeError, match=wanted):
        getattr(torch_npu, operator)(
            x, x, "group", 2, common_scale=scale.npu(), x1_quant_mode=modes[0], x2_quant_mode=modes[1]
        )
