"""What stands around operators: modules, mixed precision, pinned memory, files, generators, export."""

import copy
import io

import pytest
import torch
from torch import nn

from versions import need, need_torch

MODULES = {
    "lstm": (lambda: nn.LSTM(4, 5, 2, bidirectional=True), (3, 2, 4)),
    "gru": (lambda: nn.GRU(4, 5, 2), (3, 2, 4)),
    "rnn": (lambda: nn.RNN(4, 5, 2), (3, 2, 4)),
    "lstm cell": (lambda: nn.LSTMCell(4, 5), (3, 4)),
    "lstm cell without bias": (lambda: nn.LSTMCell(4, 5, bias=False), (3, 4)),
    "gru cell": (lambda: nn.GRUCell(4, 5), (3, 4)),
    "batch norm": (lambda: nn.BatchNorm2d(3), (2, 3, 4, 4)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8)),
    "transposed convolution": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2), (2, 3, 8, 8)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (2, 3, 8)),
    "rms norm": (lambda: nn.RMSNorm(8), (2, 3, 8)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (2, 4, 8)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_their_gradients(name):
    if name == "lstm":
        need_torch(2, 13)  # torch's own decomposition had h_n in another shape before
    make, shape = MODULES[name]
    torch.manual_seed(0)
    module, data = make(), torch.randn(shape)
    found = []
    for device in ("cpu", "npu"):
        made, x = copy.deepcopy(module).to(device), data.clone().to(device).requires_grad_()
        results = torch.utils._pytree.tree_leaves(made(x))
        sum(result.square().sum() for result in results).backward()
        found.append([*results, x.grad, *(parameter.grad for parameter in made.parameters())])
    assert all(tensor.is_npu for tensor in found[1])
    for cpu, npu in zip(*found):
        torch.testing.assert_close(npu.cpu(), cpu, rtol=1e-4, atol=1e-5)


def test_autocast_is_the_devices():
    linear, x = nn.Linear(4, 4).npu(), torch.randn(2, 4).npu()
    with torch.autocast("npu", dtype=torch.bfloat16):
        y = linear(x)
        assert y.dtype == torch.bfloat16 and y.softmax(-1).dtype == torch.float32
    y.sum().backward()
    assert linear.weight.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):  # does not concern NPU tensors
        assert (x @ x.t()).dtype == torch.float32


def test_gradient_scaling_skips_a_step_with_infinities():
    linear = nn.Linear(4, 4).npu()
    optimizer, scaler = torch.optim.SGD(linear.parameters(), 0.1), torch.amp.GradScaler("npu", init_scale=256.0)
    before = linear.weight.detach().clone()
    with torch.autocast("npu", dtype=torch.float16):
        loss = linear(torch.randn(2, 4).npu()).sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(linear.weight, before)
    before, scale = linear.weight.detach().clone(), scaler.get_scale()
    scaler.scale(linear(torch.full((1, 4), torch.inf).npu()).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(linear.weight, before) and scaler.get_scale() == scale / 2


def test_a_loader_with_workers_and_pinned_memory():
    dataset = torch.utils.data.TensorDataset(torch.arange(12.0).view(6, 2))
    loader = torch.utils.data.DataLoader(dataset, 2, num_workers=1, pin_memory=True)
    sums = []
    for (batch,) in loader:
        assert batch.is_pinned()
        sums.append(batch.to("npu", non_blocking=True).sum().item())
    assert sums == [6, 22, 38]


@pytest.mark.parametrize("place", [None, "cpu", "npu:0"])
def test_save_and_load(place):
    need_torch(2, 13)  # that of 2.8 loads no strides
    file, saved = (
        io.BytesIO(),
        {"view": torch.arange(6.0).npu().view(2, 3).t(), "parameter": nn.Parameter(torch.ones(2).npu())},
    )
    torch.save(saved, file)
    file.seek(0)
    loaded = torch.load(file, map_location=place)
    assert loaded["view"].device == torch.device(place or "npu:0") and loaded["view"].stride() == (1, 3)
    assert torch.equal(loaded["view"].cpu(), saved["view"].cpu()) and torch.equal(
        loaded["parameter"].cpu(), torch.ones(2)
    )


def test_states_of_generators_round_trip():
    own = torch.Generator("npu").manual_seed(7)
    for draw, get, put in (
        (lambda: torch.randn(5, device="npu"), torch.npu.get_rng_state, torch.npu.set_rng_state),
        (lambda: torch.rand(5, device="npu", generator=own), own.get_state, own.set_state),
    ):
        state = get()
        first, second = draw(), draw()
        assert not torch.equal(first, second)
        put(state)
        assert torch.equal(draw(), first) and torch.equal(draw(), second)


def test_recomputed_dropout_draws_the_same():
    x = torch.ones(64, device="npu", requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(nn.functional.dropout, x, use_reentrant=False)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach()) and 0 < int((y == 0).sum()) < 64


def test_export_with_a_free_size():
    need("export.Dim")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Softmax(-1)).npu()
    program = torch.export.export(module, (torch.randn(2, 4).npu(),), dynamic_shapes=({0: torch.export.Dim("n")},))
    x = torch.randn(5, 4).npu()
    torch.testing.assert_close(program.module()(x), module(x))


def test_statistics_of_synchronized_batch_norm():
    """Of two ranks, whose halves together are one batch."""
    torch.manual_seed(0)
    x, weight = torch.randn(8, 3, 5), torch.randn(8, 3, 5)
    norm, device = nn.BatchNorm1d(3), x.npu()
    leaf = x.clone().requires_grad_()
    expected = norm(leaf)
    (expected * weight).sum().backward()
    stats = [torch.batch_norm_stats(half, 1e-5) for half in device.split(4)]
    running_mean, running_var = torch.zeros(3).npu(), torch.ones(3).npu()
    counts = torch.tensor([20.0, 20.0]).npu()
    mean, invstd = torch.batch_norm_gather_stats_with_counts(
        device, *(torch.stack(both) for both in zip(*stats)), running_mean, running_var, 0.1, 1e-5, counts
    )
    ones = torch.ones(3).npu()
    y = torch.batch_norm_elemt(device, ones, torch.zeros(3).npu(), mean, invstd, 1e-5)
    total, product, _, _ = torch.batch_norm_backward_reduce(weight.npu(), device, mean, invstd, ones, True, True, True)
    gradient = torch.batch_norm_backward_elemt(
        weight.npu(), device, mean, invstd, ones, total, product, counts.to(torch.int32)
    )
    for found, wanted in (
        (y, expected),
        (running_mean, norm.running_mean),
        (running_var, norm.running_var),
        (gradient, leaf.grad),
    ):
        torch.testing.assert_close(found.cpu(), wanted)


def test_out_is_resized_with_the_strides_of_the_cpus_kernel():
    left, right = torch.eye(3).mul(2), torch.arange(6.0).view(3, 2)
    for place in (torch.empty(1), torch.empty(20)):
        expected = torch.linalg.solve_triangular(left, right, upper=True, out=place.clone())
        found = torch.linalg.solve_triangular(left.npu(), right.npu(), upper=True, out=place.npu())
        assert torch.equal(found.cpu(), expected)


def test_views_in_place_change_the_callers_view_only():
    x = torch.arange(6.0).npu().view(2, 3)
    other = x.view(6)
    x.t_().unsqueeze_(0).squeeze_(0).transpose_(0, 1).t_()
    assert x.shape == (3, 2) and x.tolist() == [[0, 3], [1, 4], [2, 5]]
    x.add_(1)
    assert other.tolist() == [1, 2, 3, 4, 5, 6]
