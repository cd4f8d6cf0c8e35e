"""float16 and bfloat16 are computed in float32 and rounded once, and eager operators and their graphs agree bit by bit."""

import pytest
import torch
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
