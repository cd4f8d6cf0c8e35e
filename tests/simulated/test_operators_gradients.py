"""Gradients that torch_npu's autograd calls, by their own names: against central differences of the forward operator's formula, in NumPy.

Each is called on NPU tensors, as its reference on CPU tensors, with fake tensors where torch_npu has a fake implementation, and compiled
where torchair lowers it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from everywhere import check, tensors, to_npu
from moe_graph import operators
from versions import need_operator, need_torch

RNG = np.random.default_rng(0)
HALVES, FLOATS = (torch.float16, torch.bfloat16), (torch.float32, torch.float16)
STEP = 1e-5
GRAPHS = ("static", "dynamic")
TOLERANCES = {  # float32's own; results in half types are rounded once, of inputs and saved results that were rounded before
    torch.float32: dict(rtol=1e-4, atol=1e-5),
    torch.float16: dict(rtol=2**-9, atol=2**-8),
    torch.bfloat16: dict(rtol=2**-6, atol=2**-5),
}


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@dataclass
class Gradient:
    """A row of the table. The formula's inputs are x's, in the dtype under test, except those in `wide`, which are float32."""

    formula: Callable[..., tuple[np.ndarray, ...]]
    inputs: Sequence[np.ndarray]
    arguments: Callable[..., Sequence]
    """(gradients of the first results, inputs, results) -> the operator's arguments"""
    options: dict = field(default_factory=dict)
    wide: Sequence[int] = ()
    wide_results: Sequence[int] = ()
    """which of the formula's results the operator is given as float32"""
    given: Sequence[int] = (0,)
    """the results of the formula that a gradient is given for"""
    found: Sequence[int | None] = (0,)
    """the input that each result of the operator is the gradient of"""
    wide_found: Sequence[int] = ()
    """the gradients that are float32 whatever the input is"""
    dtypes: Sequence[torch.dtype] = FLOATS
    lowered: Sequence[str] = ()
    """the modes of graphs in which torchair lowers it"""
    fake_of: Sequence[torch.dtype] | None = None
    """the dtypes that the fake implementation is compared for, if not all"""


def erf_gelu(x):
    return (x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),)


def tanh_gelu(x):
    return (x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)


def mish(x):
    return (x * np.tanh(np.log1p(np.exp(x))),)


def silu(x):
    return (x * sigmoid(x),)


MASK = RNG.random((32, 32)) < 0.3


def masked_softmax(x):
    weights = np.exp(np.where(MASK, -10000.0, x * 0.5))
    return (weights / weights.sum(-1, keepdims=True),)


def normalized(x, axes):
    mean = x.mean(axes, keepdims=True)
    rstd = (((x - mean) ** 2).mean(axes, keepdims=True) + 1e-5) ** -0.5
    return (x - mean) * rstd, mean, rstd


def add_layer_norm(x1, x2, gamma, beta):
    y, mean, rstd = normalized(x1 + x2, -1)
    return y * gamma + beta, x1 + x2, mean, rstd


def deep_norm(x, gx, beta, gamma):
    y, mean, rstd = normalized(0.5 * x + gx, (-2, -1))
    return y * gamma + beta, mean, rstd


def group_norm_swish(x, weight, bias):
    y, mean, rstd = normalized(x.reshape(2, 2, -1), -1)
    y = y.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]
    return y * sigmoid(1.5 * y), mean.squeeze(-1), rstd.squeeze(-1)


def rms_norm(x, gamma):
    rstd = ((x**2).mean((-2, -1), keepdims=True) + 1e-5) ** -0.5
    return x * rstd * gamma, rstd


def rotary_half(x, cos, sin):
    one, two = np.split(x, 2, -1)
    return (x * cos + np.concatenate([-two, one], -1) * sin,)


def rotary_interleave(x, cos, sin):
    partner = np.empty_like(x)
    partner[..., ::2], partner[..., 1::2] = -x[..., 1::2], x[..., ::2]
    return (x * cos + partner * sin,)


def mhc_post(x, res, out, post):
    kept = np.stack([sum(res[:, i, j, None] * x[:, i] for i in range(4)) for j in range(4)], 1)
    return (kept + post[..., None] * out[:, None],)


def mhc_pre(x, phi, alpha, bias, gamma):
    rows = x.reshape(3, -1)
    inverse = ((rows**2).mean(-1) + 1e-6) ** -0.5
    mixed = (rows * gamma.reshape(-1)) @ phi.T
    z = np.split(mixed * inverse[:, None], [4, 8], -1)
    pre, post, res = (part * a + b for part, a, b in zip(z, alpha, np.split(bias, [4, 8])))
    pre, post = sigmoid(pre) + 1e-6, 2 * sigmoid(post)
    return (pre[..., None] * x).sum(1), post, res.reshape(3, 4, 4), inverse, mixed, pre


def nsa_compress(x, weight):
    windows = (0, 2, 6)  # of sequences that end at 6 and 10: four tokens, two apart
    return (np.stack([sum(weight[k][:, None] * x[start + k] for k in range(4)) for start in windows]),)


CHOSEN = np.array([[1, 0], [0, 0], [2, 1], [0, 1]], dtype=np.int32)[:, None]  # blocks of two keys; one twice


def nsa_select(query, key, value):
    output, largest, total = np.empty((4, 2, 3)), np.empty((4, 2, 8)), np.empty((4, 2, 8))
    for t, n in itertools.product(range(4), range(2)):
        first = 0 if t < 3 else 6  # two sequences: three queries of six keys, one of four
        keys = [first + 2 * int(block) + i for block in CHOSEN[t, 0] for i in range(2)]
        scores = np.array([query[t, n] @ key[k, 0] * 0.4 for k in keys])
        largest[t, n], total[t, n] = scores.max(), np.exp(scores - scores.max()).sum()
        output[t, n] = np.exp(scores - scores.max()) / total[t, n, 0] @ value[keys, 0]
    return output, largest, total


ROUTING = np.array([[1, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 1]], dtype=bool)
BY_EXPERT = [(t, e) for e in range(3) for t in range(4) if ROUTING[t, e]]
PADDED = [
    (t, e) for e in range(3) for t in sorted(range(4), key=lambda t: (not ROUTING[t, e], t))[:2]
]  # two rows for each expert
BY_TOKEN = sorted(range(len(BY_EXPERT)), key=lambda row: BY_EXPERT[row])
OF_PAD = sorted(range(len(PADDED)), key=lambda row: (PADDED[row][0], row))


def permuted(rows):
    def formula(tokens, probs):
        return np.stack([tokens[t] for t, _ in rows]), np.stack([probs[t, e] for t, e in rows])

    return formula


def unpermuted(rows):
    def formula(values, probs):
        out = np.zeros((4, 5))
        for row, (t, e) in enumerate(rows):
            out[t] += values[row] * probs[t, e]
        return (out,)

    return formula


def integers(values, dtype=torch.int32) -> Tensor:
    return torch.tensor(np.asarray(values).tolist(), dtype=dtype)


def plain(grads, inputs, results):
    return (*grads, *inputs)


INDEX = np.array([[4, 0], [4, 2]])
ROTARY = (random(1, 2, 2, 64), random(1, 2, 1, 64), random(1, 2, 1, 64))  # what torchair lowers

TABLE: dict[str, Gradient] = {
    "npu_gelu_backward": Gradient(erf_gelu, [random(3, 5)], plain, lowered=GRAPHS),
    "npu_gelu_backward, tanh": Gradient(
        tanh_gelu, [random(3, 5)], plain, options=dict(approximate="tanh"), lowered=GRAPHS
    ),
    "npu_mish_backward": Gradient(mish, [random(3, 5) * 3], plain, dtypes=(*FLOATS, torch.bfloat16)),
    "npu_silu_backward": Gradient(silu, [random(3, 5) * 3], lambda g, x, y: (g[0], x[0], y[0])),
    "npu_scaled_masked_softmax_backward": Gradient(
        masked_softmax, [random(1, 32, 32)], lambda g, x, y: (g[0], y[0], torch.from_numpy(MASK), 0.5, False)
    ),
    "npu_bmm_v2_mat1_backward": Gradient(
        lambda a, b: (a @ b,), [random(3, 4), random(2, 4, 5)], lambda g, x, y: (g[0], *x, [3, 4])
    ),
    "npu_bmm_v2_mat2_backward": Gradient(
        lambda a, b: (a @ b,), [random(2, 3, 4), random(4)], lambda g, x, y: (g[0], *x, [4]), found=(1,)
    ),
    "npu_linear_backward": Gradient(lambda x, w: (x @ w.T,), [random(2, 3, 4), random(5, 4)], plain, found=(0, 1)),
    "npu_add_layer_norm_backward": Gradient(
        add_layer_norm,
        [random(2, 3, 4), random(2, 3, 4), random(4), random(4)],
        lambda g, x, y: (g[0], x[0], x[1], y[3], y[2], x[2], g[1]),
        given=(0, 1),
        wide_results=(2, 3),
        found=(0, 1, 2, 3),
        wide_found=(2, 3),
    ),
    "npu_add_layer_norm_backward, of y alone": Gradient(
        add_layer_norm,
        [random(2, 3, 4), random(2, 3, 4), random(4), random(4)],
        lambda g, x, y: (g[0], x[0], x[1], y[3], y[2], x[2], None),
        wide_results=(2, 3),
        found=(0, 1, 2, 3),
        wide_found=(2, 3),
    ),
    "npu_add_layer_norm_backward, of the sum alone": Gradient(
        add_layer_norm,
        [random(2, 3, 4), random(2, 3, 4), random(4), random(4)],
        lambda g, x, y: (None, x[0], x[1], y[3], y[2], x[2], g[0]),
        given=(1,),
        wide_results=(2, 3),
        found=(0, 1, 2, 3),
        wide_found=(2, 3),
    ),
    "npu_deep_norm_backward": Gradient(
        deep_norm,
        [random(2, 3, 4), random(2, 3, 4), random(3, 4), random(3, 4)],
        lambda g, x, y: (g[0], x[0], x[1], x[3], y[1], y[2], 0.5),
        wide_results=(1, 2),
        found=(0, 1, 2, 3),
        wide_found=(2, 3),
        fake_of=(torch.float32,),  # it gives gamma's dtype, op-plugin's adapter float32
    ),
    "npu_group_norm_swish_grad": Gradient(
        group_norm_swish,
        [random(2, 4, 3, 2), random(4), random(4)],
        lambda g, x, y: (g[0], x[0], 2, x[1], x[2], y[1], y[2], [True, True, True], 1.5),
        found=(0, 1, 2),
    ),
    "npu_group_norm_swish_grad, of the weight alone": Gradient(
        group_norm_swish,
        [random(2, 4, 3, 2), random(4), random(4)],
        lambda g, x, y: (g[0], x[0], 2, x[1], x[2], y[1], y[2], [False, True, False], 1.5),
        found=(1,),
    ),
    "npu_rms_norm_backward": Gradient(
        rms_norm,
        [random(3, 2, 4), random(2, 4)],
        lambda g, x, y: (g[0], x[0], x[1], y[1]),
        wide_results=(1,),
        found=(0, 1),
        wide_found=(1,),
        lowered=GRAPHS,
    ),
    "npu_rotary_mul_backward": Gradient(rotary_half, ROTARY, plain, found=(0, 1, 2), lowered=("static",)),
    "npu_rotary_mul_backward, interleave": Gradient(
        rotary_interleave,
        ROTARY,
        lambda g, x, y: (g[0], *x, "interleave"),
        found=(0, 1, 2),
    ),
    "npu_mhc_post_backward": Gradient(
        mhc_post,
        [random(3, 4, 5), random(3, 4, 4), random(3, 5), random(3, 4)],
        plain,
        wide=(1, 3),
        found=(0, 1, 2, 3),
        dtypes=HALVES,
    ),
    "npu_mhc_pre_backward": Gradient(
        mhc_pre,
        [random(3, 4, 3), random(24, 12) / 3, random(3), random(24), random(4, 3)],
        lambda g, x, y: (x[0], x[1], x[2], *g, *y[3:6], y[1], x[4]),
        wide=(1, 2, 3, 4),
        given=(0, 1, 2),
        wide_results=(1, 2, 3, 4, 5),
        found=(0, 1, 2, 3, 4),
        dtypes=HALVES,
    ),
    "npu_confusion_transpose_backward": Gradient(
        lambda x: (x.reshape(3, 2, 4).transpose(2, 0, 1),),
        [random(2, 3, 4)],
        lambda g, x, y: (g[0], [2, 0, 1], [2, 3, 4], True),
    ),
    "npu_confusion_transpose_backward, transposed first": Gradient(
        lambda x: (x.transpose(2, 0, 1).reshape(4, 6),),
        [random(2, 3, 4)],
        lambda g, x, y: (g[0], [2, 0, 1], [2, 3, 4], False),
    ),
    "npu_max_backward": Gradient(
        lambda x: (x.max(1),),
        [random(2, 3, 4)],
        lambda g, x, y: (g[0], 1, x[0].max(1).indices.int(), [2, 3, 4], False),
    ),
    "npu_min_backward": Gradient(
        lambda x: (x.min(-1, keepdims=True),),
        [random(2, 3, 4)],
        lambda g, x, y: (g[0], -1, x[0].min(-1, True).indices.int(), [2, 3, 4], True),
    ),
    "npu_gather_sparse_index_backward": Gradient(
        lambda x: (x[INDEX],), [random(5, 3)], lambda g, x, y: (g[0], [5, 3], integers(INDEX))
    ),
    "npu_nsa_compress_grad": Gradient(
        nsa_compress,
        [random(10, 2, 3), random(4, 2)],
        plain,
        options=dict(compress_block_size=4, compress_stride=2, actual_seq_len=[6, 10]),
        found=(0, 1),
        dtypes=HALVES,
    ),
    "npu_nsa_select_attention_grad": Gradient(
        nsa_select,
        [random(4, 2, 3), random(10, 1, 3), random(10, 1, 3)],
        lambda g, x, y: (g[0], *x, *y, integers(CHOSEN), 0.4, 2, 2, 2),
        options=dict(actual_seq_qlen=[3, 4], actual_seq_kvlen=[6, 10]),
        wide_results=(1, 2),
        found=(0, 1, 2),
        dtypes=HALVES,
    ),
    "npu_moe_token_permute_with_routing_map_grad": Gradient(
        permuted(BY_EXPERT),
        [random(4, 5), random(4, 3)],
        lambda g, x, y: (*g, integers(BY_TOKEN), torch.from_numpy(ROUTING), 3, 4, False),
        given=(0, 1),
        found=(0, 1),
    ),
    "npu_moe_token_permute_with_routing_map_grad, padded": Gradient(
        permuted(PADDED),
        [random(4, 5), random(4, 3)],
        lambda g, x, y: (*g, integers([t for t, _ in PADDED]), torch.from_numpy(ROUTING), 3, 4, True),
        given=(0, 1),
        found=(0, 1),
    ),
    "npu_moe_token_unpermute_with_routing_map_grad": Gradient(
        unpermuted(BY_EXPERT),
        [random(8, 5), random(4, 3)],
        lambda g, x, y: (
            g[0],
            integers(BY_TOKEN),
            integers(BY_TOKEN),
            torch.from_numpy(ROUTING),
            *x,
            False,
            [4, 5],
        ),
        found=(0, 1),
    ),
    "npu_moe_token_unpermute_with_routing_map_grad, padded": Gradient(
        unpermuted(PADDED),
        [random(6, 5), random(4, 3)],
        lambda g, x, y: (
            g[0],
            integers(OF_PAD),
            integers([PADDED[row][0] for row in OF_PAD]),
            torch.from_numpy(ROUTING),
            *x,
            True,
            [4, 5],
        ),
        found=(0, 1),
    ),
}


def slopes(row: Gradient, arrays: list[np.ndarray], grads: list[np.ndarray], which: int) -> np.ndarray:
    """The gradient of arrays[which]: how the results, weighted with `grads`, change with each of its elements."""
    found = np.empty(arrays[which].shape)
    for at in np.ndindex(found.shape):
        ends = []
        for step in (STEP, -STEP):
            moved = [array.copy() for array in arrays]
            moved[which][at] += step
            results = row.formula(*moved)
            ends.append(sum((results[i] * grad).sum() for i, grad in zip(row.given, grads)))
        found[at] = (ends[0] - ends[1]) / (2 * STEP)
    return found


def agrees_with_the_fake(operator: torch._ops.OpOverload, args: list, options: dict, found: list[Tensor]) -> None:
    if not torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "Meta"):
        return
    mode = FakeTensorMode()
    given = [mode.from_tensor(to_npu(arg)) if isinstance(arg, Tensor) else arg for arg in args]
    with mode:
        promised = operator(*given, **options)
    promised = [promised] if isinstance(promised, Tensor) else [t for t in promised if t is not None]
    assert [(t.dtype, t.shape) for t in promised] == [(t.dtype, t.shape) for t in found]


CASES = [
    pytest.param(name, dtype, id=f"{name}-{str(dtype).removeprefix('torch.')}")
    for name, row in TABLE.items()
    for dtype in row.dtypes
]


@pytest.mark.parametrize("name, dtype", CASES)
def test_gradient(name: str, dtype: torch.dtype) -> None:
    row, operator = TABLE[name], name.partition(",")[0]
    need_operator(operator)
    declared = operators.every()[f"npu::{operator}"]

    def dtype_of(position: int, wide: Sequence[int]) -> torch.dtype:
        return torch.float32 if position in wide else dtype

    inputs = [torch.from_numpy(x).to(dtype_of(i, row.wide)) for i, x in enumerate(row.inputs)]
    arrays = [x.double().numpy() for x in inputs]
    exact = row.formula(*arrays)
    results = [torch.from_numpy(np.asarray(y)).to(dtype_of(i, row.wide_results)) for i, y in enumerate(exact)]
    grads = [torch.from_numpy(random(*results[i].shape)).to(results[i].dtype) for i in row.given]
    args = list(row.arguments(grads, inputs, results))
    as_arrays = [g.double().numpy() for g in grads]
    expected = [
        torch.from_numpy(slopes(row, arrays, as_arrays, i)).to(
            torch.float32 if i in row.wide_found else inputs[i].dtype
        )
        for i in row.found
    ]

    def call(*args):
        return declared.overload(*args, **row.options)

    modes = ("eager", *(row.lowered if dtype == torch.float16 else ()))
    check(call, args, expected, modes=modes, **TOLERANCES[dtype])
    on_cpu = tensors([declared.reference(*args, **row.options)])
    on_npu = tensors([call(*map(to_npu, args))])
    assert all(torch.equal(one, other) for one, other in zip(on_cpu, on_npu)) and len(on_cpu) == len(on_npu)
    if row.fake_of is None or dtype in row.fake_of:
        agrees_with_the_fake(declared.overload, args, row.options, on_npu)


@pytest.mark.parametrize("padded", [False, True])
def test_what_the_unpermuted_tokens_gradient_takes(padded: bool) -> None:
    need_torch(2, 7)
    rows = PADDED if padded else BY_EXPERT
    values, probs = torch.from_numpy(random(len(rows), 5)).float(), torch.from_numpy(random(4, 3)).float()
    indices = integers([t for t, _ in rows] if padded else BY_TOKEN)
    out = torch.from_numpy(unpermuted(rows)(values.double().numpy(), probs.double().numpy())[0]).float()
    weights = torch.stack([probs[t, e] for t, e in (rows if padded else [rows[i] for i in BY_TOKEN])])
    kept = [integers(OF_PAD), integers([rows[i][0] for i in OF_PAD])] if padded else [indices, indices]

    def call(values, indices, probs, routing):
        operator = torch.ops.npu._npu_moe_token_unpermute_with_routing_map
        return operator(values, indices, [4, 5], probs=probs, routing_map=routing, drop_and_pad=padded)

    args = [values, indices, probs, torch.from_numpy(ROUTING)]
    check(call, args, [out, *kept, weights], modes=("eager",), rtol=1e-6, atol=1e-6)
