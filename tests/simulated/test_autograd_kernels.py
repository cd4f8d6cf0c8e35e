"""Operators of aten that torch_npu has autograd kernels of its own for: none reaches CANN, values and gradients are the CPU's."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import rnn

from moe_graph.simulator import report
from versions import need_torch

LENGTHS = torch.tensor([3, 6, 5])
A, B, C, D = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0)).unbind()
SEQUENCE = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(1))
TARGET = torch.tensor([[1, 2, -1], [0, -1, 1], [2, 1, 0]])
INDEX = torch.tensor([[0, 0, 0], [1, 1, 2]])


def gradients(function, *tensors):
    """The value, and the gradients of the sum of its squares."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    value.abs().square().sum().backward()
    return value, [leaf.grad for leaf in leaves]


def module(kind, *sizes, **options):
    torch.manual_seed(3)
    return kind(*sizes, **options)


def layer(kind, **options):
    return lambda x: module(kind, 4, 5, **options).to(x.device)(x)[0]


def cell(kind):
    def call(x):
        result = module(kind, 4, 6).to(x.device)(x[0])
        return result[0] if isinstance(result, tuple) else result

    return call


def of_several_lengths(kind):
    def call(x):
        packed = rnn.pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
        output, states = module(kind, 4, 5, num_layers=2, bidirectional=True).to(x.device)(packed)
        state = states[0] if isinstance(states, tuple) else states
        padded, lengths = rnn.pad_packed_sequence(output)
        assert lengths.tolist() == LENGTHS.tolist()
        return torch.cat([padded.flatten(), state.flatten()])

    return call


def new(x):
    return torch.empty(0, device=x.device, dtype=x.dtype)


def inplace_or(on):
    numbers, truths = torch.tensor([1, 2]).to(on), torch.tensor([True, False]).to(on)
    numbers |= 4
    numbers |= torch.tensor([8, 2]).to(on)
    truths |= True
    return numbers, truths, torch.tensor([1, 2]).to(on).bitwise_or_(4), 4 | numbers


def fft(x):
    return torch.fft.irfft(torch.fft.rfft(x).abs() + 0j)


CASES = {
    "__ior__": inplace_or,
    "_fft_c2r": lambda on: gradients(fft, A[0].to(on)),
    "_fft_r2c": lambda on: torch.fft.rfft(A.to(on), out=torch.empty(0, dtype=torch.complex64, device=on)),
    "_pad_packed_sequence": lambda on: gradients(of_several_lengths(torch.nn.RNN), SEQUENCE.to(on)),
    "_weight_norm": lambda on: gradients(lambda v, g: torch._weight_norm(v, g, 1), A.to(on), B[:1].to(on)),
    "adaptive_avg_pool2d": lambda on: gradients(lambda x: F.adaptive_avg_pool2d(x[None], (3, 1)), SEQUENCE.to(on)),
    "affine_grid_generator_backward": lambda on: [
        gradients(lambda t: F.affine_grid(t, [3, 3, 4, 4], align_corners=False), SEQUENCE[:3, :2, :3].to(on)),
        gradients(lambda t: F.affine_grid(t, [3, 3, 4, 4, 5], align_corners=True), SEQUENCE[:3].to(on)),
    ],
    "argsort": lambda on: [A.to(on).argsort(descending=True), torch.argsort(A.to(on), stable=True, dim=0)],
    "binary_cross_entropy_with_logits": lambda on: gradients(
        lambda x: F.binary_cross_entropy_with_logits(
            x, B.to(on).sigmoid(), C.to(on).abs(), pos_weight=D[0].to(on).abs()
        ),
        A.to(on),
    ),
    "cdist": lambda on: [
        gradients(lambda a, b, p=p: torch.cdist(a, b, p), A.to(on), B[:2].to(on)) for p in (1.0, 2.0, 3.0)
    ],
    "contiguous": lambda on: gradients(lambda x: x.t().contiguous(), A.to(on)),
    "conv_tbc_backward": lambda on: gradients(
        lambda x, w, b: torch.conv_tbc(x, w, b, 1),
        SEQUENCE.to(on),
        torch.stack([A, B]).repeat(1, 2, 1)[:, :4].to(on),
        C[0].to(on),
    ),
    "fft_fftshift": lambda on: gradients(torch.fft.fftshift, A.to(on)),
    "fft_ifftshift": lambda on: gradients(torch.fft.ifftshift, A.to(on)),
    "fill_diagonal_": lambda on: [
        gradients(lambda x: x.clone().fill_diagonal_(2.0), A.to(on)),
        torch.zeros(7, 3, device=on).fill_diagonal_(2, wrap=True),
    ],
    "flatten_dense_tensors": lambda on: torch._C._nn.flatten_dense_tensors([A.to(on), B[0].to(on)]),
    "gather": lambda on: [
        gradients(lambda x: torch.gather(x, 0, INDEX.to(on)), A.to(on)),
        torch.gather(A.to(on), 0, INDEX.to(on), out=new(A.to(on))),
    ],
    "gru": lambda on: [
        gradients(layer(torch.nn.GRU, bidirectional=True), SEQUENCE.to(on)),
        gradients(of_several_lengths(torch.nn.GRU), SEQUENCE.to(on)),
    ],
    "inverse": lambda on: [gradients(torch.inverse, A.to(on)), torch.inverse(A.to(on), out=new(A.to(on)))],
    "kl_div": lambda on: gradients(lambda a, b: F.kl_div(a, b, reduction="sum"), A.to(on), B.abs().to(on)),
    "l1_loss": lambda on: gradients(F.l1_loss, A.to(on), B.to(on)),
    "linalg_cholesky": lambda on: [
        gradients(lambda x: torch.linalg.cholesky(x @ x.t() + torch.eye(3, device=on)), A.to(on)),
        torch.linalg.cholesky((A @ A.t() + torch.eye(3)).to(on), out=new(A.to(on))),
    ],
    "log_sigmoid": lambda on: [
        gradients(F.logsigmoid, A.to(on)),
        torch._C._nn.log_sigmoid(A.to(on), out=new(A.to(on))),
    ],
    "lstm": lambda on: [
        gradients(layer(torch.nn.LSTM, num_layers=2, batch_first=True), SEQUENCE.to(on)),
        gradients(of_several_lengths(torch.nn.LSTM), SEQUENCE.to(on)),
    ],
    "lstm_cell": lambda on: gradients(cell(torch.nn.LSTMCell), SEQUENCE.to(on)),
    "matmul": lambda on: [
        gradients(torch.matmul, A.to(on), B[0].to(on)),
        torch.matmul(A.to(on), B.to(on), out=new(A.to(on))),
    ],
    "max": lambda on: torch.max(A.to(on), B.to(on), out=new(A.to(on))),
    "min": lambda on: torch.min(A.to(on), B.to(on), out=new(A.to(on))),
    "multilabel_margin_loss": lambda on: [
        *(
            gradients(lambda x, r=r: F.multilabel_margin_loss(x, TARGET.to(on), reduction=r), A.to(on))
            for r in ("none", "mean", "sum")
        ),
        torch._C._nn.multilabel_margin_loss(A.to(on), TARGET.to(on), out=new(A.to(on))),
    ],
    "nanmean": lambda on: torch.nanmean(A.to(on), 0, out=new(A.to(on))),
    "native_dropout": lambda on: gradients(lambda x: torch.native_dropout(x, 0.0, True)[0], A.to(on)),
    "one_hot": lambda on: F.one_hot(torch.tensor([1, 2]).to(on), 4),
    "pdist": lambda on: gradients(lambda x: F.pdist(x, 3.0), A.to(on)),
    "renorm": lambda on: [
        gradients(lambda x: x.renorm(2, 0, 0.5), A.to(on)),
        A.clone().to(on).renorm_(2, 0, 0.5),
        torch.renorm(A.to(on), 1, 1, 0.5, out=new(A.to(on))),
    ],
    "repeat_interleave": lambda on: [
        gradients(lambda x: x.repeat_interleave(torch.tensor([1, 2, 3]).to(on), 0), A.to(on)),
        gradients(lambda x: x.repeat_interleave(2, 1), A.to(on)),
    ],
    "scaled_dot_product_attention": lambda on: gradients(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        A[None].to(on),
        B[None].to(on),
        C[None].to(on),
    ),
    "slogdet": lambda on: [gradients(lambda x: torch.slogdet(x)[1], A.to(on)), tuple(torch.slogdet(B.to(on)))],
    "softmax": lambda on: gradients(lambda x: torch.softmax(x, 0, dtype=torch.float64), A.to(on)),
    "stft": lambda on: gradients(
        lambda x: torch.stft(x, 8, window=torch.hann_window(8).to(on), return_complex=True), SEQUENCE.flatten().to(on)
    ),
    "where": lambda on: torch.where(A.to(on) > 0),
}

# No operator of aten calls these by itself on an NPU: torch_npu's own backward does, or a cell that the CPU composes of others.
UNDER_OTHERS = {"matmul_backward": "matmul", "_thnn_fused_gru_cell": "gru"}


def registered():
    """Names, without overloads, of what torch_npu registers under autograd of the device."""
    names = torch._C._dispatch_get_registrations_for_dispatch_key("AutogradPrivateUse1")
    return {name.partition("::")[2].partition(".")[0] for name in names if name.startswith("aten::")}


def test_each_autograd_kernel_of_torch_npu_has_a_case():
    missing = {
        name
        for name in registered()
        if name not in CASES and name.rstrip("_") not in CASES and name not in UNDER_OTHERS
    }
    recurrent = {"rnn_tanh", "rnn_relu", "_pack_padded_sequence"}  # ours: see "_pad_packed_sequence"
    assert missing <= recurrent, missing


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_cpus(name):
    need_torch(2, 7)
    with report.record() as record:
        computed = CASES[name]("npu")
    assert not record.missing, record.missing
    torch.testing.assert_close(computed, CASES[name]("cpu"), check_device=False)


def test_cells():
    for kind in (torch.nn.GRUCell, torch.nn.RNNCell):
        torch.testing.assert_close(
            gradients(cell(kind), SEQUENCE.npu()), gradients(cell(kind), SEQUENCE), check_device=False
        )


@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_sequences_keep_their_padding(batch_first):
    """As torch_npu's adapter has it: all T * B rows, T the longest length, and back to what they were."""
    lengths = torch.tensor([5, 4, 2])
    whole = SEQUENCE.transpose(0, 1) if batch_first else SEQUENCE
    packed = rnn.pack_padded_sequence(whole.npu(), lengths, batch_first)
    assert torch.equal(packed.data.cpu(), SEQUENCE[:5].reshape(15, 4))
    assert packed.batch_sizes.tolist() == [3, 3, 2, 2, 1] and packed.batch_sizes.is_cpu
    padded, back = rnn.pad_packed_sequence(packed, batch_first)
    assert torch.equal(padded.cpu(), whole[:, :5] if batch_first else whole[:5]) and back.tolist() == [5, 4, 2]
    with torch.inference_mode():
        assert torch.equal(rnn.pad_packed_sequence(packed, batch_first)[0].cpu(), padded.cpu())
        assert torch.equal(rnn.pack_padded_sequence(whole.npu(), lengths, batch_first).data.cpu(), packed.data.cpu())
    with pytest.raises(RuntimeError, match="'lengths' argument should be a CPU tensor, but got npu:0 tensor"):
        torch._pack_padded_sequence(whole.npu(), lengths.npu(), batch_first)
    with pytest.raises(RuntimeError, match="sorted|decreasing"):
        torch._pack_padded_sequence(whole.npu(), torch.tensor([2, 4, 5]), batch_first)


def test_a_sequence_packed_on_the_cpu_is_taken_as_it_is():
    packed = rnn.pack_padded_sequence(SEQUENCE, LENGTHS, enforce_sorted=False)
    recurrent = module(torch.nn.LSTM, 4, 5)
    expected = recurrent(packed)[0].data
    with torch.inference_mode():
        torch.testing.assert_close(recurrent.npu()(packed.to("npu"))[0].data.cpu(), expected)


def shaped(t):
    return t.shape, t.dtype


def test_transforms_of_tensors_without_elements_and_their_gradients():
    """The CPU's library refuses them, a device gives as many nothings (op-plugin's test of stft)."""
    x = torch.zeros(0, 19).npu().requires_grad_()
    spectrum = torch.fft.rfft(x)
    assert shaped(spectrum) == ((0, 10), torch.complex64)
    assert shaped(torch.fft.fft(spectrum)) == ((0, 10), torch.complex64)
    assert shaped(torch.fft.rfft(x.detach(), out=torch.empty(3, dtype=torch.complex64).npu())) == (
        (0, 10),
        torch.complex64,
    )
    parts = torch.stft(x, 18, 8, 14, window=torch.ones(14).npu(), center=False, onesided=False, return_complex=True)
    assert shaped(parts) == ((0, 18, 1), torch.complex64)
    (torch.fft.irfft(spectrum, 19).sum() + torch.fft.fft(x).abs().sum() + parts.abs().sum()).backward()
    assert x.grad.shape == (0, 19)
