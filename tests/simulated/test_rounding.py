"""float16 and bfloat16 are computed in float32 and rounded once, and eager operators and their graphs agree bit by bit."""

import pytest
import torch
import torch_npu
import torchair
from torch.nn import functional as F

HALF = (torch.float16, torch.bfloat16)


def data(*shape, low=-1.0, high=1.0):
    return torch.rand(shape, dtype=torch.float64) * (high - low) + low


# name: (function, inputs). Eager and graph; what torchair lowers to several nodes, which round each, is not here.
IN_BOTH = {
    "matmul": (torch.matmul, [data(3, 4, 512), data(3, 512, 16)]),
    "mm": (torch.mm, [data(8, 2048), data(2048, 8)]),
    "mm of a transpose": (lambda a, b: torch.mm(a, b.t()), [data(8, 300), data(9, 300)]),
    "linear": (F.linear, [data(4, 96), data(5, 96), data(5)]),
    "linear of three dimensions": (F.linear, [data(2, 4, 96), data(5, 96), data(5)]),
    "bmm": (torch.bmm, [data(2, 5, 64), data(2, 64, 7)]),
    "conv1d": (lambda x, w: F.conv1d(x, w, padding=1), [data(2, 6, 20), data(5, 6, 3)]),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1), [data(2, 6, 9, 9), data(4, 6, 3, 3), data(4)]),
    "conv_transpose2d": (F.conv_transpose2d, [data(2, 6, 5, 5), data(6, 4, 3, 3)]),
    "grid_sample": (
        lambda x, g: F.grid_sample(x, g, align_corners=False),
        [data(2, 3, 9, 9, high=10), data(2, 6, 6, 2)],
    ),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (64,), w, b), [data(6, 64), data(64), data(64)]),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), [data(2, 6, 8, 8), data(6), data(6)]),
    "batch_norm": (
        lambda x, m, v, w, b: F.batch_norm(x, m.clone(), v.clone(), w, b, True),
        [data(4, 3, 6, 6), data(3), data(3, low=0.5), data(3), data(3)],
    ),
    "softmax": (lambda x: x.softmax(-1), [data(4, 300, low=-8, high=8)]),
    "log_softmax": (lambda x: x.log_softmax(1), [data(4, 300, low=-8, high=8)]),
    "softmax of half to float": (lambda x: torch._softmax(x, -1, x.dtype == torch.float16), [data(4, 30)]),
    "sum": (lambda x: x.sum(-1), [data(4, 1000)]),
    "mean": (lambda x: x.mean((0, 2)), [data(4, 8, 100)]),
    "cumsum": (lambda x: x.cumsum(-1), [data(4, 500)]),
    "mse_loss": (F.mse_loss, [data(40, 9), data(40, 9)]),
    "add with alpha": (lambda a, b: torch.add(a, b, alpha=0.3), [data(500), data(500)]),
    "addcmul": (lambda a, b, c: torch.addcmul(a, b, c, value=0.25), [data(500), data(500), data(500)]),
    "lerp": (lambda a, b: torch.lerp(a, b, 0.25), [data(500), data(500)]),
    "pow": (lambda a: torch.pow(a, 3), [data(500)]),
    "pow of tensors": (torch.pow, [data(500, low=0.1), data(500)]),
    "rsqrt": (torch.rsqrt, [data(500, low=0.1, high=9)]),
    "silu": (F.silu, [data(500, low=-5, high=5)]),
    "hardsigmoid": (F.hardsigmoid, [data(500, low=-4, high=4)]),
    "hardswish": (F.hardswish, [data(500, low=-4, high=4)]),
    "elu": (F.elu, [data(500, low=-4, high=4)]),
    "mish": (F.mish, [data(500, low=-4, high=4)]),
    "glu": (F.glu, [data(500, low=-4, high=4)]),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.3), [data(500)]),
    "sigmoid": (torch.sigmoid, [data(500, low=-4, high=4)]),
    "erf": (torch.erf, [data(500, low=-4, high=4)]),
    "floor_divide": (torch.floor_divide, [data(500, low=1, high=50), data(500, low=0.5, high=2)]),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, stride=2), [data(2, 3, 11, 11)]),
    "embedding": (lambda w: F.embedding(torch.arange(4, device=w.device).repeat(20), w), [data(4, 8)]),
    "index_add": (
        lambda x, u: x.index_add(0, torch.arange(4, device=x.device).repeat(9), u),
        [data(4, 8), data(36, 8)],
    ),
    "foreach add": (lambda a, b: torch._foreach_add([a, a], [b, b], alpha=0.25), [data(300), data(300)]),
    "foreach sub": (lambda a, b: torch._foreach_sub([a, a], [b, b], alpha=0.25), [data(300), data(300)]),
    "foreach addcdiv": (
        lambda a, b, c: torch._foreach_addcdiv([a, a], [b, b], [c, c], [0.25, 0.75]),
        [data(300), data(300), data(300, low=0.5)],
    ),
    "foreach addcmul": (
        lambda a, b, c: torch._foreach_addcmul([a, a], [b, b], [c, c], 0.25),
        [data(300), data(300), data(300)],
    ),
}


def flat(results):
    return [results] if isinstance(results, torch.Tensor) else list(results)


GROUPS = [list(IN_BOTH)[start::4] for start in range(4)]


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
@pytest.mark.parametrize("dtype", HALF)
def test_eager_and_graph_agree_bit_by_bit(names, dtype):
    functions = [IN_BOTH[name][0] for name in names]

    def together(inputs):
        return [function(*given) for function, given in zip(functions, inputs)]

    torch._dynamo.reset()
    inputs = [[x.to(dtype).npu() for x in IN_BOTH[name][1]] for name in names]
    compiled = torch.compile(together, backend=torchair.get_npu_backend(), dynamic=False)
    differ = {}
    for name, eager, graph in zip(names, together(inputs), compiled(inputs)):
        for one, other in zip(flat(eager), flat(graph)):
            assert one.dtype == other.dtype, name
            if not torch.equal(one.cpu(), other.cpu()):
                differ[name] = f"{(one.cpu() != other.cpu()).sum().item()} of {one.numel()}"
    assert not differ


def on_npu(values):
    return [value.npu() if isinstance(value, torch.Tensor) else value for value in values]


LOGITS, TARGETS = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 4, 0, 2, 3, 3])
# What a device takes and the CPU's kernel refuses: (function, arguments it takes there, what the CPU is given).
TAKEN = {
    "nll_loss": (F.nll_loss, [LOGITS, TARGETS.int()], [LOGITS, TARGETS]),
    "cross_entropy": (F.cross_entropy, [LOGITS, TARGETS.int()], [LOGITS, TARGETS]),
    "gather": (torch.gather, [LOGITS, 1, TARGETS.int()[:, None]], [LOGITS, 1, TARGETS[:, None]]),
    "index_copy": (
        torch.index_copy,
        [LOGITS, 0, TARGETS.int()[:2], LOGITS[2:4]],
        [LOGITS, 0, TARGETS[:2], LOGITS[2:4]],
    ),
    "scatter": (torch.scatter, [LOGITS, 1, TARGETS.int()[:, None], 7.0], [LOGITS, 1, TARGETS[:, None], 7.0]),
    "put": (torch.put, [LOGITS, TARGETS.int()[:2], LOGITS[0, :2]], [LOGITS, TARGETS[:2], LOGITS[0, :2]]),
    "half softmax to float": (torch._softmax, [LOGITS.half(), 1, True], [LOGITS.half().float(), 1, False]),
    "cdist of half": (torch.cdist, [LOGITS.half(), LOGITS.half()], [LOGITS.half().float(), LOGITS.half().float()]),
    "avg_pool3d of half": (
        lambda x: F.avg_pool3d(x, 2),
        [LOGITS.half().expand(1, 2, 6, 5)],
        [LOGITS.half().float().expand(1, 2, 6, 5)],
    ),
    "add_relu of half": (torch._VF._add_relu, [LOGITS.half(), LOGITS.half()], [LOGITS.half().float()] * 2),
    "hardsigmoid of whole numbers": (F.hardsigmoid, [TARGETS.int() * 3], [TARGETS.float() * 3]),
}


@pytest.mark.parametrize("name", TAKEN)
def test_taken_as_a_device_takes_it(name):
    function, arguments, cpu_arguments = TAKEN[name]
    found, expected = function(*on_npu(arguments)).cpu(), function(*cpu_arguments)
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=0)


def test_gradients_of_int32_targets():
    gradients = []
    for device, targets in (("cpu", TARGETS), ("npu", TARGETS.int())):
        leaf = LOGITS.clone().to(device).requires_grad_()
        F.cross_entropy(leaf, targets.to(device)).backward()
        gradients.append(leaf.grad.cpu())
    torch.testing.assert_close(*gradients)


def test_one_hot_has_the_dtype_of_its_indices():
    found = F.one_hot(TARGETS.int().npu(), 6)
    assert found.dtype == torch.int32 and torch.equal(found.cpu().long(), F.one_hot(TARGETS, 6))
    assert F.one_hot(TARGETS.npu(), 6).dtype == torch.int64


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)])
def test_a_mixed_product_has_the_dtype_of_its_first_operand(dtypes):
    x, y = data(3, 64).to(dtypes[0]), data(64, 5).to(dtypes[1])
    found = torch.mm(x.npu(), y.npu())
    assert found.dtype == dtypes[0]
    assert torch.equal(found.cpu(), (x.float() @ y.float()).to(dtypes[0]))


def test_lstm_cell_of_half_with_float_weights():
    cell, x, state = torch.nn.LSTMCell(4, 8), torch.randn(3, 4).half(), torch.randn(3, 8).half()
    expected = cell(x.float(), (state.float(), state.float()))
    found = cell.npu()(x.npu(), (state.npu(), state.npu()))
    for one, other in zip(found, expected):
        assert one.dtype == torch.float16
        torch.testing.assert_close(one.cpu().float(), other, rtol=2e-3, atol=2e-3)


def test_foreach_scalars_on_the_cpu_and_lists_of_two_devices():
    x, scalars = torch.arange(1.0, 4.0), torch.tensor([2.0, 3.0])
    found = torch._foreach_addcdiv(on_npu([x, x]), on_npu([x, x]), on_npu([x, x]), scalars)
    assert [each.tolist() for each in found] == [(x + 2).tolist(), (x + 3).tolist()]
    mixed = [-x.npu(), -x]
    torch._foreach_sign_(mixed)
    assert [each.tolist() for each in mixed] == [[-1, -1, -1]] * 2 and mixed[0].device.type == "npu"
    with pytest.raises(RuntimeError, match="same number of tensors"):
        torch._foreach_sub(on_npu([x, x]), on_npu([x]), alpha=2)


@pytest.mark.parametrize("name", ["sum", "all", "norm"])
def test_a_dimension_out_of_range_is_a_runtime_error(name):
    with pytest.raises(RuntimeError, match="Dimension out of range"):
        getattr(torch, name)(torch.ones(1, 1).npu(), dim=-3)


def test_renorm_of_p_0_counts():
    x = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 5.0]])
    found = torch.renorm(x.npu(), 0, 0, 1.0).cpu()
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.0, 1.0], [0.0, 0.0, 5.0]]))


def test_statistics_that_are_given_are_returned_and_two_devices_refused():
    mean, variance = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.25])
    running = torch.native_batch_norm(
        torch.ones(2, 2, 3).npu(), None, None, mean.npu(), variance.npu(), False, 0.1, 0.0
    )
    assert torch.equal(running[1].cpu(), mean)
    torch.testing.assert_close(running[2].cpu(), variance.rsqrt())
    with pytest.raises(RuntimeError, match="Expected all tensors to be on"):
        torch.searchsorted(torch.arange(3).npu(), torch.arange(2))


@pytest.mark.parametrize("keywords", [{"group_type": None}, {"group_type": 1}, {"group_type": 0, "split_item": 7}])
def test_what_torch_npu_refuses_with_a_runtime_error(keywords):
    """`except RuntimeError` in a program catches it here, too."""
    x, weight, listed = torch.ones(4, 2).half().npu(), torch.ones(2, 2, 3).half().npu(), torch.tensor([1, 4]).npu()
    with pytest.raises(RuntimeError, match="npu_grouped_matmul: (group_type|split_item) must be"):
        torch_npu.npu_grouped_matmul([x], [weight], group_list=listed, **{"split_item": 3, **keywords})
