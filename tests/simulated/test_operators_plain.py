"""Operators of CANN's older interface with a plain meaning, on NPU tensors, against loops from their documents; and their gradients."""

import itertools
import math

import pytest
import torch
import torch_npu


def places(shape):
    return itertools.product(*map(range, shape))


def test_mish():
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).half() * 3
    npu = x.npu().requires_grad_()
    y = torch_npu.npu_mish(npu)
    for at in places(x.shape):
        v = float(x[at])
        assert float(y[at].detach()) == pytest.approx(v * math.tanh(math.log1p(math.exp(v))), rel=2**-10, abs=1e-6)
    y.backward(torch.full_like(y, 2.0))
    for at in places(x.shape):
        v, h = float(x[at]), 1e-4
        two = [(v + s) * math.tanh(math.log1p(math.exp(v + s))) for s in (h, -h)]
        assert float(npu.grad[at]) == pytest.approx(2 * (two[0] - two[1]) / (2 * h), rel=2**-9, abs=2**-10)


def test_one_hot():
    x = torch.tensor([[5, 3], [-1, 0]], dtype=torch.int32)
    y = torch_npu.npu_one_hot(x.npu(), depth=5, on_value=2, off_value=-1).cpu()
    assert y.dtype == torch.float32 and y.shape == (2, 2, 5)
    assert all(y[i, j, c] == (2 if int(x[i, j]) == c else -1) for i, j, c in places(y.shape))
    with pytest.raises(RuntimeError, match="num_classes must be one of -1, 2"):
        torch_npu.npu_one_hot(x.npu(), 0, 5)


def test_pad():
    x = torch.randn(2, 3, 4).bfloat16()
    y = torch_npu.npu_pad(x.npu(), [1, 0, 2, 3]).cpu()  # the last dimension has none
    assert y.shape == (3, 8, 4)
    for at in places(y.shape):
        inside = at[0] >= 1 and 2 <= at[1] < 5
        assert y[at] == (x[at[0] - 1, at[1] - 2, at[2]] if inside else 0)
    with pytest.raises(RuntimeError, match="paddings must be at most 6 numbers"):
        torch_npu.npu_pad(x.npu(), [0, -1])


def test_slice_transpose_broadcast():
    x = torch.arange(24).view(2, 3, 4)
    part = torch_npu.npu_slice(x.npu(), [0, 1, 2], [2, 2, 1]).cpu()
    turned = torch_npu.npu_transpose(x.npu(), (2, 0, 1))
    wide = torch_npu.npu_broadcast(x[:, :1].npu(), [2, 2, 3, 4]).cpu()
    assert part.shape == (2, 2, 1) and all(part[a] == x[a[0], 1 + a[1], 2 + a[2]] for a in places(part.shape))
    assert turned.is_contiguous() and all(turned.cpu()[k, i, j] == x[i, j, k] for i, j, k in places(x.shape))
    assert all(wide[a] == x[a[1], 0, a[3]] for a in places((2, 2, 3, 4)))
    out = torch.zeros(2, 2, 1, dtype=torch.int64).npu()
    torch.ops.npu.npu_slice.out(x.npu(), [0, 1, 2], [2, 2, 1], out=out)
    assert torch.equal(out.cpu(), part)
    with pytest.raises(RuntimeError, match="offsets and size must be a part of shape"):
        torch_npu.npu_slice(x.npu(), [0, 1, 2], [2, 3, 1])
    with pytest.raises(RuntimeError, match="perm must be each of 3 dimensions once"):
        torch_npu.npu_transpose(x.npu(), (0, 0, 1))


@pytest.mark.parametrize("dim", [-1, 0])
def test_sort_v2(dim):
    x = torch.randn(4, 3).half()
    for falling in (False, True):
        y = torch_npu.npu_sort_v2(x.npu(), dim, falling).cpu()
        lines = zip(x.tolist() if dim else x.t().tolist(), y.tolist() if dim else y.t().tolist())
        assert all(sorted(given, reverse=falling) == found for given, found in lines)


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("name", ["npu_max", "npu_min"])
def test_max_and_min(name, keepdim):
    x = torch.tensor([[1.0, 5.0, 5.0], [-2.0, -3.0, -3.0]])
    npu = x.npu().requires_grad_()
    values, indices = getattr(torch_npu, name)(npu, 1, keepdim)
    best = max if name == "npu_max" else min
    lines = x.tolist()
    assert values.flatten().tolist() == [best(line) for line in lines] and indices.dtype == torch.int32
    first = [line.index(best(line)) for line in lines]
    assert indices.flatten().tolist() == first and values.shape == ((2, 1) if keepdim else (2,))
    values.backward(torch.full_like(values, 3.0))
    assert npu.grad.cpu().tolist() == [[3.0 if j == at else 0.0 for j in range(3)] for at in first]


@pytest.mark.parametrize("first", [False, True])
def test_confusion_transpose(first):
    x = torch.arange(24.0).view(2, 3, 4)
    npu, perm, shape = x.npu().requires_grad_(), (2, 0, 1), (4, 6) if first else (3, 2, 4)
    y = torch_npu.npu_confusion_transpose(npu, perm, shape, first)
    flat = x.flatten().tolist()
    if first:
        expected = [float(x[i, j, k]) for k, i, j in itertools.product(range(4), range(2), range(3))]
    else:  # as [3, 2, 4], whose last dimension comes first
        expected = [flat[(i * 2 + j) * 4 + k] for k, i, j in itertools.product(range(4), range(3), range(2))]
    assert y.cpu().flatten().tolist() == expected and y.shape == ((4, 6) if first else (4, 3, 2))
    weights = torch.arange(24.0).view(y.shape)
    y.backward(weights.npu())
    back = dict(zip(expected, weights.flatten().tolist()))
    assert npu.grad.cpu().flatten().tolist() == [back[v] for v in flat]


def test_masked_fill_range():
    start, end = torch.tensor([[0, 1, 2], [2, 0, 3]], dtype=torch.int32), torch.tensor([[2, 1, 4], [3, 2, 4]]).int()
    value = torch.tensor([7.0, 9.0])
    for shape, axis in (((3, 4), -1), ((3, 2, 4), 2), ((4, 3), 0), ((2, 4, 3), 1), ((4,), 0)):
        x = torch.randn(shape)
        expected, by_row = x.clone(), len(shape) > 1 and axis % len(shape) == len(shape) - 1
        for loop, j in places((2, 3)):
            for k in range(int(start[loop, j]), int(end[loop, j])):
                for at in places(shape):
                    if at[axis] == k and (not by_row or at[0] == j):
                        expected[at] = value[loop]
        found = torch_npu.npu_masked_fill_range(x.npu(), start.npu(), end.npu(), value.npu(), axis)
        assert torch.equal(found.cpu(), expected), (shape, axis)


@pytest.mark.parametrize(
    "shapes", [((2, 3, 4), (2, 4, 5)), ((2, 1, 3, 4), (5, 4, 2)), ((4,), (2, 4, 3)), ((2, 3, 4), (4,))]
)
def test_bmm_v2(shapes):
    torch.manual_seed(0)
    a, b = (torch.randint(-4, 5, shape).float() for shape in shapes)
    left, right = a.npu().requires_grad_(), b.npu().requires_grad_()
    y = torch_npu.npu_bmmV2(left, right, [])
    rows, columns = (a[None] if a.dim() == 1 else a), (b[:, None] if b.dim() == 1 else b)
    letters = torch.einsum("...mk,...kn->...mn", rows.double(), columns.double())
    expected = letters.squeeze(-2) if a.dim() == 1 else letters.squeeze(-1) if b.dim() == 1 else letters
    assert y.shape == expected.shape and torch.equal(y.cpu().double(), expected)
    grad = torch.randint(-3, 4, y.shape).float()
    y.backward(grad.npu())
    for tensor, given in ((left, a), (right, b)):
        at = tuple(size - 1 for size in given.shape)
        moved = given.double()
        moved[at] += 1  # the product is linear in each operand
        other = [moved if given is a else a.double(), moved if given is b else b.double()]
        wide = torch.einsum(
            "...mk,...kn->...mn",
            other[0][None] if a.dim() == 1 else other[0],
            other[1][:, None] if b.dim() == 1 else other[1],
        )
        change = ((wide - letters).reshape(grad.shape) * grad).sum()
        assert tensor.grad.shape == given.shape and float(tensor.grad.cpu()[at]) == float(change)


def test_scaled_masked_softmax():
    torch.manual_seed(0)
    x, mask = torch.randn(2, 32, 32).half(), torch.rand(32, 32) < 0.4
    mask[3] = True
    npu = x.npu().requires_grad_()
    y = torch_npu.npu_scaled_masked_softmax(npu, mask.npu(), 0.5)
    grad = torch.randn(2, 32, 32).half()
    y.backward(grad.npu())
    for i, row in places((2, 32)):
        logits = [-10000.0 if mask[row, j] else 0.5 * float(x[i, row, j]) for j in range(32)]
        largest = max(logits)
        weights = [math.exp(v - largest) for v in logits]
        weights = [w / sum(weights) for w in weights]
        torch.testing.assert_close(y[i, row].cpu().double(), torch.tensor(weights).double(), rtol=2**-10, atol=1e-6)
        inner = sum(w * float(grad[i, row, j]) for j, w in enumerate(weights))
        wanted = [0.0 if mask[row, j] else 0.5 * w * (float(grad[i, row, j]) - inner) for j, w in enumerate(weights)]
        torch.testing.assert_close(npu.grad[i, row].cpu().double(), torch.tensor(wanted).double(), rtol=0, atol=2e-4)
    with pytest.raises(RuntimeError, match="x must be of"):
        torch_npu.npu_scaled_masked_softmax(x[:, :31].npu(), mask[:31].npu())
