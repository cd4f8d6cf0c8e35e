"""Losses and their gradients, by loops from their documents; gradients by central differences."""

import numpy as np
import pytest
import torch
import torch_npu

from everywhere import check
from versions import need_operator

RNG = np.random.default_rng(0)
EXACT = dict(rtol=1e-5, atol=1e-6)


def log_softmax(row):
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def cross_entropy(x, target, weight, reduction, ignored, smoothing):
    """Token by token."""
    losses, total = [], 0.0
    for row, word in zip(x, target):
        logs = log_softmax(row)
        used = 0.0 if word == ignored else 1.0
        smoothed = -sum(weight[c] * logs[c] for c in range(len(row))) / len(row)
        losses.append(used * ((1 - smoothing) * -weight[word] * logs[word] + smoothing * smoothed))
        total += used * weight[word]
    if reduction == "none":
        return np.array(losses)
    return np.array([sum(losses) / (total if reduction == "mean" else 1.0)])


FORMS = {
    "plain": {},
    "weights": dict(weight=RNG.uniform(0.1, 1, 5)),
    "ignored": dict(ignore_index=3),
    "smooth": dict(weight=RNG.uniform(0.1, 1, 5), ignore_index=3, label_smoothing=0.2),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", FORMS)
def test_cross_entropy_loss_and_its_gradient(form, reduction):
    need_operator("npu_cross_entropy_loss")
    x, target = RNG.standard_normal((4, 5)).astype(np.float32), np.array([0, 3, 4, 3])
    options = dict(FORMS[form])
    weight = options.pop("weight", None)
    given = (np.ones(5) if weight is None else weight.astype(np.float32).astype(np.float64), reduction)
    numbers = (options.get("ignore_index", -100), options.get("label_smoothing", 0.0))

    def loss(x, target, weight):
        return torch_npu.npu_cross_entropy_loss(x, target, weight, reduction, **options)

    expected = [cross_entropy(x.astype(np.float64), target, *given, *numbers), np.stack([log_softmax(r) for r in x])]
    args = [torch.from_numpy(x), torch.from_numpy(target), None if weight is None else torch.tensor(weight).float()]
    check(loss, args, [torch.from_numpy(e).float() for e in expected] + [torch.empty(0)] * 2, modes=("eager",), **EXACT)
    ours, grad = args[0].npu().requires_grad_(), RNG.standard_normal(expected[0].shape)
    on_npu = [ours, *(None if arg is None else arg.npu() for arg in args[1:])]
    loss(*on_npu)[0].backward(torch.from_numpy(grad).float().npu())
    wanted = np.empty(x.shape)
    for at in np.ndindex(x.shape):
        moved = [x.astype(np.float64), x.astype(np.float64)]
        moved[0][at] += 1e-5
        moved[1][at] -= 1e-5
        one, other = (cross_entropy(m, target, *given, *numbers) for m in moved)
        wanted[at] = ((one - other) / 2e-5 * grad).sum()
    torch.testing.assert_close(ours.grad.cpu().double(), torch.from_numpy(wanted), rtol=1e-4, atol=1e-5)
    for wrong, message in (
        (dict(reduction="median"), "reduction must be one of 'mean', 'sum', 'none', got 'median'"),
        (dict(label_smoothing=1.0), "label_smoothing must be from 0 to below 1"),
        (dict(return_zloss=True), "return_zloss are not served"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch_npu.npu_cross_entropy_loss(args[0].npu(), args[1].npu(), **wrong)
    with pytest.raises(RuntimeError, match="target must be .4. from 0 to 4, got .0, 5, 4, 3."):
        torch_npu.npu_cross_entropy_loss(args[0].npu(), torch.tensor([0, 5, 4, 3]).npu())


def test_a_captured_loss_and_its_gradient():
    need_operator("npu_cross_entropy_loss")
    x, target = torch.randn(4, 5).npu().requires_grad_(), torch.tensor([0, 3, 4, 3]).npu()

    def step():
        loss, _, *others = torch_npu.npu_cross_entropy_loss(x, target)
        assert [other.numel() for other in others] == [0, 0]
        return loss, torch.autograd.grad(loss.sum(), x)[0]

    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn(4, 5))
    graph.replay()
    assert all(torch.equal(found.cpu(), wanted.cpu()) for found, wanted in zip(captured, step()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("saved", [False, True])
def test_cross_entropy_over_two_ranks(dtype, saved):
    """Each has half of the words; joined by all-reduce the loss and the gradients are those of one rank with all words."""
    need_operator("npu_fused_linear_online_max_sum")
    x, weight = torch.from_numpy(RNG.standard_normal((11, 6))).to(dtype), torch.from_numpy(RNG.standard_normal((8, 6)))
    weight, target = weight.to(dtype), torch.from_numpy(RNG.integers(0, 8, 11).astype(np.int32))
    halves, exact = (weight[:4], weight[4:]), [x.double().requires_grad_(), weight.double().requires_grad_()]
    found = [
        torch_npu.npu_fused_linear_online_max_sum(x.npu(), half.npu(), target.npu(), 4 * i, 4 * i + 4, True)
        for i, half in enumerate(halves)
    ]
    logits = exact[0] @ exact[1].T
    for i, (largest, total, predicted, mask, row, own) in enumerate(found):
        part = logits[:, 4 * i : 4 * i + 4].detach()
        torch.testing.assert_close(largest.cpu().double(), part.amax(1), **EXACT)
        torch.testing.assert_close(total.cpu().double(), (part - part.amax(1, True)).exp().sum(1), **EXACT)
        torch.testing.assert_close(own.cpu(), part.to(dtype), rtol=2**-7, atol=1e-3)
        bits = np.unpackbits(mask.cpu().numpy(), bitorder="little")
        for t, word in enumerate(target.tolist()):
            here = word // 4 == i
            assert bits[t] == (not here) and row[t] == (word - 4 * i if here else 0)
            value = part[t, word % 4] - part[t].max() if here else 0.0
            assert float(predicted[t]) == pytest.approx(float(value), rel=1e-4, abs=1e-5)
        assert (bits[11:] == (i == 1)).all() and row.dtype == torch.int32  # behind the last token stands target 0
    largest = torch.maximum(found[0][0], found[1][0])
    total = sum(one[1] * (one[0] - largest).exp() for one in found)
    predicted = sum(
        (one[2] + one[0] - largest) * torch.tensor([w // 4 == i for w in target.tolist()]).npu()
        for i, one in enumerate(found)
    )
    losses = torch.nn.functional.cross_entropy(logits, target.long(), reduction="none")
    grad = torch.from_numpy(RNG.standard_normal(11)).float()
    losses.backward(grad.double())
    sums = torch.zeros(11, 6)
    tolerance = dict(rtol=2**-6, atol=2**-4 if saved and dtype == torch.bfloat16 else 2**-6)  # of logits rounded to it
    for i, (half, one) in enumerate(zip(halves, found)):
        function = torch_npu.npu_fused_cross_entropy_loss_with_max_sum
        loss, softmax = function(largest, total, predicted, vocab_parallel_logits=one[5])
        torch.testing.assert_close(loss.cpu().double(), losses.detach(), rtol=1e-4, atol=1e-4)
        assert function(largest, total, predicted)[1] is None
        states = dict(softmax=softmax) if saved else dict(logits_max=largest, sum_exp_logits=total)
        backward = torch_npu.npu_fused_linear_cross_entropy_loss_with_max_sum_backward
        of_x, of_weight = backward(grad.npu(), x.npu(), half.npu(), one[3], one[4], **states)
        assert of_x.dtype == of_weight.dtype == dtype
        torch.testing.assert_close(of_weight.cpu().double(), exact[1].grad[4 * i : 4 * i + 4], **tolerance)
        sums += of_x.cpu().float()
    torch.testing.assert_close(sums.double(), exact[0].grad, **tolerance)
    with pytest.raises(RuntimeError, match="label_smoothing must be"):
        function(largest, total, predicted, label_smoothing=0.1)
    with pytest.raises(RuntimeError, match="vocab_start_index and vocab_end_index must be"):
        torch_npu.npu_fused_linear_online_max_sum(x.npu(), halves[0].npu(), target.npu(), 0, 5)
