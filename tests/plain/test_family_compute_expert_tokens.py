"""npu_moe_compute_expert_tokens on CPU tensors, against a count."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import moe_graph  # noqa: F401  registers the operator
from versions import opcheck

operator = torch.ops.npu.npu_moe_compute_expert_tokens


@given(st.lists(st.integers(0, 6), max_size=20), st.integers(7, 9))
def test_running_sum(experts, num_expert):
    rows = torch.tensor(sorted(experts), dtype=torch.int32)
    result = operator(rows, num_expert)
    assert result.tolist() == [sum(1 for expert in experts if expert <= i) for i in range(num_expert)]
    fake = operator(rows.to("meta"), num_expert)
    assert (result.dtype, result.shape) == (fake.dtype, fake.shape) == (torch.int32, (num_expert,))


def test_opcheck():
    opcheck(operator.default, (torch.tensor([0, 0, 2], dtype=torch.int32), 4))


@pytest.mark.parametrize(
    "rows, num_expert, message",
    [
        (torch.zeros(3), 4, "sorted_expert_for_source_row must be of dtype torch.int32"),
        (torch.zeros(3, 2).int(), 4, r"sorted_expert_for_source_row must be of shape \[A\]"),
        (torch.zeros(3).int(), 0, "num_expert must be from 1 to 2048, got 0"),
        (torch.zeros(3).int(), 2049, "num_expert must be from 1 to 2048, got 2049"),
    ],
)
def test_bad_input_is_refused_by_name(rows, num_expert, message):
    with pytest.raises(ValueError, match=f"npu_moe_compute_expert_tokens: {message}"):
        operator(rows, num_expert)
