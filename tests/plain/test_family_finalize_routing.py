"""npu_moe_finalize_routing on CPU tensors, against loops from its document."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import moe_graph  # noqa: F401  registers the operator
from versions import opcheck

operator = torch.ops.npu.npu_moe_finalize_routing


def reference(rows, skip1, skip2, bias, scales, index, experts, drop_pad_mode, k):
    """The result as lists of Python numbers."""
    width = rows.shape[-1]
    rows = rows.reshape(-1, width).tolist()
    choices = k if scales is None else scales.shape[1]
    count = len(index) // choices
    result = []
    for n in range(count):
        total = [0.0] * width
        for skip in (skip1, skip2):
            if skip is not None:
                total = [a + b for a, b in zip(total, skip[n].tolist())]
        for choice in range(choices):
            place = choice * count + n if drop_pad_mode in (0, 1) else n * choices + choice
            row = index[place].item()
            value = [0.0] * width if row == -1 else rows[row]
            if bias is not None:
                value = [a + b for a, b in zip(value, bias[experts[n, choice]].tolist())]
            weight = 1.0 if scales is None else scales[n, choice].item()
            total = [a + weight * b for a, b in zip(total, value)]
        result.append(total)
    return result


@st.composite
def calls(draw):
    count, choices, experts, capacity = draw(st.integers(0, 5)), draw(st.integers(1, 3)), 4, 3
    mode = draw(st.sampled_from([0, 1, 2, 3]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))

    def numbers(*shape):
        return (torch.randint(-8, 9, shape, generator=generator) / 4).to(dtype)

    total = count * choices
    rows = numbers(experts, capacity, 3) if mode in (1, 3) else numbers(max(total, 1), 3)
    available = experts * capacity if mode in (1, 3) else max(total, 1)
    index = torch.randint(-1, available, (total,), generator=generator).int()

    def maybe(*shape):
        return numbers(*shape) if draw(st.booleans()) else None

    skip1, skip2, bias, scales = maybe(count, 3), maybe(count, 3), maybe(experts, 3), maybe(count, choices)
    chosen = torch.randint(0, experts, (count, choices), generator=generator).int()
    chosen = chosen if bias is not None or draw(st.booleans()) else None
    return rows, skip1, skip2, bias, scales, index, chosen, mode, choices


@settings(max_examples=150, deadline=None)
@given(calls())
def test_equals_the_formula(call):
    result = operator(*call)
    rows, index, choices = call[0], call[5], call[8]
    assert result.dtype == rows.dtype and result.shape == (len(index) // choices, 3)
    expected = torch.tensor(reference(*call)).view(result.shape)
    torch.testing.assert_close(result, expected.to(rows.dtype))
    fake = operator(*(x.to("meta") if isinstance(x, torch.Tensor) else x for x in call))
    assert (fake.shape, fake.dtype) == (result.shape, result.dtype)


@pytest.mark.parametrize("mode", [0, 2])
def test_gradients_and_opcheck(mode):
    index = torch.tensor([0, 3, -1, 2, 1, 5], dtype=torch.int32)
    experts = torch.tensor([[0, 1], [1, 1], [0, 0]], dtype=torch.int32)
    leaves = [torch.randn(*shape, requires_grad=True) for shape in ((6, 4), (3, 4), (2, 4), (3, 2))]
    rows, skip, bias, scales = leaves

    def call(rows, skip, bias, scales):
        return operator(rows, skip, None, bias, scales, index, experts, mode)

    weight = torch.randn(3, 4)
    found = torch.autograd.grad((call(*leaves) * weight).sum(), leaves)
    expected = [torch.zeros_like(leaf) for leaf in leaves]
    expected[1] += weight
    for n in range(3):
        for choice in range(2):
            row = int(index[choice * 3 + n if mode == 0 else n * 2 + choice])
            if row >= 0:
                expected[0][row] += scales[n, choice].item() * weight[n]
            value = bias[experts[n, choice]] + (rows[row] if row >= 0 else 0)
            expected[2][experts[n, choice]] += scales[n, choice].item() * weight[n]
            expected[3][n, choice] += (value * weight[n]).sum().item()
    torch.testing.assert_close(found, tuple(expected))
    detached = [leaf.detach() for leaf in leaves]
    arguments = (detached[0], detached[1], None, detached[2], detached[3], index, experts, mode)
    opcheck(operator.default, arguments)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"drop_pad_mode": 4}, "drop_pad_mode must be one of 0, 1, 2, 3, got 4"),
        ({"drop_pad_mode": 1}, r"expanded_permuted_rows must be of shape \[E, C, H\] with drop_pad_mode 1"),
        ({"rows": torch.zeros(6, 4).double()}, "expanded_permuted_rows must be of dtype"),
        ({"index": torch.zeros(6)}, "expanded_src_to_dst_row must be of dtype torch.int32"),
        ({"index": torch.zeros(5).int()}, "scales must be of N . K = 5 elements"),
        ({"scales": None, "k": 0}, "k must be >= 1 without scales, got 0"),
        ({"scales": None, "k": 4}, "expanded_src_to_dst_row must be of a length that k = 4 divides"),
        ({"experts": None}, "export_for_source_row must be given with bias"),
        ({"bias": torch.zeros(2, 3)}, r"bias must be of shape \[E, H\], H = 4"),
        ({"experts": torch.zeros(2, 3).int()}, r"export_for_source_row must be of shape \[N, K\], \[3, 2\]"),
        ({"skip2": torch.zeros(2, 4)}, r"skip2 must be of shape \[N, H\], \[3, 4\]"),
        ({"skip1": torch.zeros(3, 4).half()}, "skip1 must be of dtype torch.float32"),
    ],
)
def test_bad_input_is_refused_by_name(change, message, device):
    call = {
        "rows": torch.zeros(6, 4),
        "skip1": None,
        "skip2": None,
        "bias": torch.zeros(2, 4),
        "scales": torch.zeros(3, 2),
        "index": torch.zeros(6).int(),
        "experts": torch.zeros(3, 2).int(),
        "drop_pad_mode": 0,
        "k": 1,
        **change,
    }
    with pytest.raises(ValueError, match=f"npu_moe_finalize_routing: {message}"):
        operator(*(x.to(device) if isinstance(x, torch.Tensor) else x for x in call.values()))
