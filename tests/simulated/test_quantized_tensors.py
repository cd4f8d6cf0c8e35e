"""Quantised tensors of torch on the NPU: what torch_npu has an operator for is the CPU's, the rest an error that names the operator."""

import numpy as np
import pytest
import torch

DTYPES = {torch.qint8: (-128, 127), torch.quint8: (0, 255), torch.qint32: (-(2**31), 2**31 - 1)}
SCALES, ZEROS = [0.5, 0.25, 2.0], [3, -7, 0]
pytestmark = pytest.mark.filterwarnings("ignore")  # torch deprecates quantised tensors


def _made(x, dtype, channel):
    if not channel:
        return torch.quantize_per_tensor(x, SCALES[0], ZEROS[0], dtype)
    return torch.quantize_per_channel(x, torch.tensor(SCALES).to(x.device), torch.tensor(ZEROS).to(x.device), 0, dtype)


def _x():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * 100


def _document(x, dtype, channel):
    """round(x / scale + zero point), halves to even, cut to the type's range."""
    lowest, largest = DTYPES[dtype]
    scale, zero = (np.array(SCALES)[:, None], np.array(ZEROS)[:, None]) if channel else (SCALES[0], ZEROS[0])
    return np.clip(np.rint(x.numpy().astype(np.float64) / scale + zero), lowest, largest)


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantised_and_back(dtype, channel):
    q = _made(_x().npu(), dtype, channel)
    assert q.dtype == dtype and q.device.type == "npu"
    numbers = _document(_x(), dtype, channel)
    np.testing.assert_array_equal(q.int_repr().cpu().numpy(), numbers)
    scale, zero = (np.array(SCALES)[:, None], np.array(ZEROS)[:, None]) if channel else (SCALES[0], ZEROS[0])
    np.testing.assert_array_equal(q.dequantize().cpu().numpy(), (numbers - zero) * scale)
    if channel:
        assert q.qscheme() == torch.per_channel_affine and q.q_per_channel_axis() == 0
        assert q.q_per_channel_scales().tolist() == SCALES and q.q_per_channel_zero_points().tolist() == ZEROS
    else:
        assert (q.qscheme(), q.q_scale(), q.q_zero_point()) == (torch.per_tensor_affine, SCALES[0], ZEROS[0])


def test_a_half_is_rounded_after_the_zero_point_is_added():
    """As aclnnQuantize's document has it."""
    q = torch.quantize_per_tensor(torch.tensor([0.5, 1.5]).npu(), 1.0, 1, torch.qint8)
    assert q.int_repr().tolist() == [2, 2]


MOVED = {
    "clone": lambda q: q.clone(),
    "view": lambda q: q.view(2, 6),
    "reshape": lambda q: q.t().reshape(2, 6),
    "ravel": lambda q: q.t().ravel(),
    "flip": lambda q: q.flip(1),
    "transposed": lambda q: q.t(),
    "made contiguous": lambda q: q.t().contiguous(),
    "slice": lambda q: q[1:, ::2],
    "row": lambda q: q[2],
    "copied into another": lambda q: torch.empty_like(q).copy_(q),
    "copied from a view": lambda q: torch.quantize_per_tensor(q.t().dequantize() * 0, 4.0, 1, q.dtype).copy_(q.t()),
}


@pytest.mark.parametrize("moved", MOVED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_moved(dtype, moved):
    on_cpu, on_npu = (MOVED[moved](_made(x, dtype, False)) for x in (_x(), _x().npu()))
    np.testing.assert_array_equal(on_npu.int_repr().cpu().numpy(), on_cpu.int_repr().numpy())
    np.testing.assert_array_equal(on_npu.dequantize().cpu().numpy(), on_cpu.dequantize().numpy())
    assert on_npu.q_scale() == on_cpu.q_scale()


def test_a_copy_is_another_memory_and_a_view_is_not():
    q = _made(_x().npu(), torch.qint8, False)
    assert q.clone().data_ptr() != q.data_ptr() == q.view(-1).data_ptr()


def test_strides_are_made_contiguous_by_the_kernel_that_torch_npu_asks_for():
    """AsStrided of CANN's older interface, which torch_npu calls for copies that it does not hand to an operator."""
    x = torch.arange(40, dtype=torch.int16)
    got = torch.ops.npu.npu_stride_copy(x.npu(), (2, 3, 2), (8, 1, 17), 3)
    wanted = np.lib.stride_tricks.as_strided(x.numpy()[3:], (2, 3, 2), (16, 2, 34))
    np.testing.assert_array_equal(got.cpu().numpy(), wanted)


def test_added_as_op_plugin_adds():
    """Of int8 alone, and as if the zero points were 0: relu(a + b * scale_b / scale_a) * scale_a / scale."""
    a, b = (torch.quantize_per_tensor(x.npu(), s, 0, torch.qint8) for x, s in ((_x(), 1.0), (_x().flip(0), 0.5)))
    numbers = [t.int_repr().cpu().numpy().astype(np.float64) for t in (a, b)]
    total = numbers[0] + numbers[1] / 2
    for operator, values in ((torch.ops.quantized.add, total), (torch.ops.quantized.add_relu, np.maximum(total, 0))):
        got = operator(a, b, 2.0, 0)
        np.testing.assert_array_equal(got.int_repr().cpu().numpy(), np.rint(np.clip(values / 2, -128, 127)))


REFUSED = {
    "aten::empty_quantized": lambda q: q.cpu(),
    "aten::relu": lambda q: q.relu(),
    "aten::cat": lambda q: torch.cat([q, q]),
    "aten::add": lambda q: q + q,
    "aten::topk": lambda q: q.topk(1),
    "quantized::mul": lambda q: torch.ops.quantized.mul(q, q, 1.0, 0),
    # torch's own errors of these do not say which operator it is
    "aten::eq.Scalar": lambda q: q == 1.0,
    "aten::lt.Scalar": lambda q: q < 0.0,
    "aten::mean.dim": lambda q: q.mean(1),
    "aten::mul.Tensor": lambda q: q * 2.0,
    "aten::convolution_overrideable": lambda q: torch.nn.functional.conv2d(q[None, None], q[None, None]),
}


@pytest.mark.parametrize("operator", REFUSED)
def test_what_torch_npu_has_no_operator_for_is_an_error_that_names_it(operator):
    with pytest.raises(NotImplementedError, match=f"Could not run '{operator}.*from the 'Quantizednpu' backend"):
        REFUSED[operator](_made(_x().npu(), torch.qint8, False))


def test_a_copy_of_a_tensor_quantised_by_channel_is_refused_by_name():
    with pytest.raises(NotImplementedError, match="aten::_empty_per_channel_affine_quantized"):
        _made(_x().npu(), torch.qint8, True).clone()
