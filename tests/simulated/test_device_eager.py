"""Eager operators on NPU tensors: the values of the CPU's kernels, the aliasing and devices of NPU ones."""

import copy
import textwrap

import pytest
import torch
import torch_npu
from torch.nn import functional as F

from moe_graph.simulator import report
from versions import need_torch

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(4, 6, generator=GENERATOR)
Y = torch.randn(4, 6, generator=GENERATOR)
INTEGERS = torch.randint(-5, 5, (4, 6), generator=GENERATOR)

FUNCTIONS = {
    "arithmetic": lambda x, y, i: (x + y * 2 - 1) / (y.abs() + 1),
    "scalars": lambda x, y, i: [2 - x, x // 2, i % 3, x**2, -i],
    "compare": lambda x, y, i: [x > y, x == x, i.ne(0), torch.isfinite(x), (x > 0) & (y > 0) | ~(i > 1)],
    "reduce": lambda x, y, i: [
        x.sum(),
        x.mean(0),
        x.max(1),
        x.min(),
        i.sum(1),
        (i > 9).any(),
        (i < 9).all(),
        x.std(),
        x.amax(1),
    ],
    "cumulative": lambda x, y, i: [i.cumsum(0), x.cumsum(1)],
    "matmul": lambda x, y, i: [
        x @ y.t(),
        torch.bmm(x[None], y.t()[None]),
        torch.addmm(x[:, :4], x, y.t()),
        F.linear(x, y),
    ],
    "index": lambda x, y, i: [
        x[i[0].abs() % 4],
        x[:, 1::2],
        x[x > 0],
        x.index_select(1, i[0].abs()),
        x.gather(1, i.abs()),
        x[1, 2],
    ],
    "order": lambda x, y, i: [x.sort(1), x.argsort(0), x.topk(2), i.flatten().unique(), torch.nonzero(i)],
    "assemble": lambda x, y, i: [
        torch.cat([x, y]),
        torch.stack([x, y]),
        torch.where(x > 0, x, y),
        x.repeat(2, 1),
        x.flip(0),
    ],
    "repeat_interleave": lambda x, y, i: x.repeat_interleave(i[:, 0].abs(), 0),
    "casts": lambda x, y, i: [x.half(), x.bfloat16(), i.float(), x.to(torch.int32), i.bool()],
    "layout": lambda x, y, i: [
        x.t().contiguous(),
        x.t().clone(),
        x.reshape(3, 8),
        x.permute(1, 0).flatten(),
        x.view(torch.int32),
    ],
    "activations": lambda x, y, i: [
        F.silu(x),
        F.gelu(x),
        F.relu(x),
        x.softmax(-1),
        x.log_softmax(0),
        F.layer_norm(x, (6,)),
        torch.sigmoid(x),
    ],
    "bits": lambda x, y, i: [i & 3, i | 1, i ^ y.int().long(), i << 1, i >> 1],
    "create": lambda x, y, i: [
        torch.zeros_like(x),
        torch.ones_like(i),
        torch.full_like(x, 3),
        x.new_zeros(2),
        x.new_tensor([1.0, 2.0]),
    ],
    "bincount": lambda x, y, i: torch.bincount(i.abs().flatten(), minlength=9),
}


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in flat(item)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_are_the_cpus(name):
    expected = flat(FUNCTIONS[name](X, Y, INTEGERS))
    got = flat(FUNCTIONS[name](X.npu(), Y.npu(), INTEGERS.npu()))
    assert len(got) == len(expected)
    for a, b in zip(got, expected):
        assert a.device == torch.device("npu:0") and a.dtype == b.dtype
        torch.testing.assert_close(a.cpu(), b)


def test_in_place_operators_change_the_callers_tensor():
    x, cpu = X.npu(), X.clone()
    view = x[1]
    for tensor in (x, cpu):
        assert tensor.mul_(2).add_(1) is tensor
        tensor[0] = 7
        tensor[tensor > 3] = 0
        tensor.t().clamp_(max=1)
    assert torch.equal(x.cpu(), cpu) and torch.equal(view.cpu(), cpu[1])


def test_out_is_written_and_resized():
    x, rows = X.npu(), torch.tensor([2, 0]).npu()
    fits, grows = torch.empty(2, 6, device="npu"), torch.empty(0, device="npu")
    place = fits.data_ptr()
    assert torch.index_select(x, 0, rows, out=fits) is fits and fits.data_ptr() == place
    torch.index_select(x, 0, rows, out=grows)
    assert torch.equal(fits.cpu(), X[[2, 0]]) and torch.equal(grows.cpu(), X[[2, 0]])


def test_a_result_of_a_type_that_cannot_hold_it_is_refused_as_the_device_does():
    whole, parts = torch.zeros(6, dtype=torch.uint8, device="npu"), [torch.ones(3, device="npu")] * 2
    with pytest.raises(RuntimeError, match="can't be cast"):
        torch.cat(parts, out=whole)
    assert not whole.any()


def test_creation_on_the_device():
    assert torch.equal(torch.arange(5, device="npu").cpu(), torch.arange(5))
    assert torch.equal(torch.ones(2, 3, dtype=torch.int8, device="npu").cpu(), torch.ones(2, 3, dtype=torch.int8))
    assert torch.equal(torch.tensor([[1, 2], [3, 4]], device="npu").cpu(), torch.tensor([[1, 2], [3, 4]]))
    assert torch.equal(torch.linspace(0, 1, 5, device="npu").cpu(), torch.linspace(0, 1, 5))
    assert torch.equal(torch.eye(3, device="npu").cpu(), torch.eye(3))


def test_random_numbers_follow_the_npus_generator():
    draws = [
        lambda: torch.rand(100, device="npu"),
        lambda: torch.randn(100, device="npu"),
        lambda: torch.randint(0, 1000, (100,), device="npu"),
        lambda: torch.randperm(100, device="npu"),
        lambda: F.dropout(torch.ones(100, device="npu")),
    ]
    for draw in draws:
        torch.manual_seed(3)
        first, second = draw(), draw()
        assert not torch.equal(first, second)
        state = torch.npu.get_rng_state()
        third = draw()
        torch.manual_seed(3)
        assert torch.equal(draw(), first) and torch.equal(draw(), second)
        torch.npu.set_rng_state(state)
        assert torch.equal(draw(), third)


def test_drawing_on_the_device_leaves_the_cpus_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    torch.rand(3, device="npu")
    F.dropout(torch.ones(10, device="npu"))
    assert torch.equal(torch.rand(3), expected)


def test_scalars_and_printing():
    x = torch.arange(4.0).npu()
    assert x.sum().item() == 6 and x.tolist() == [0, 1, 2, 3] and bool(x[1] == 1) and int(x[2]) == 2
    assert str(x) == "tensor([0., 1., 2., 3.], device='npu:0')"
    assert "..." in str(torch.zeros(5000, device="npu")) and "npu:0" in str(
        torch.zeros(2, 2, dtype=torch.int8, device="npu")
    )


def test_gradients():
    def loss(x, weight):
        hidden = F.silu(x @ weight)
        return (F.layer_norm(hidden, hidden.shape[-1:]) ** 2 * hidden.softmax(-1)).sum()

    weight = torch.randn(6, 5, generator=GENERATOR)
    leaves = {device: [t.detach().to(device).requires_grad_() for t in (X, weight)] for device in ("cpu", "npu")}
    for device in leaves:
        loss(*leaves[device]).backward()
    for cpu, npu in zip(*leaves.values()):
        assert npu.grad.is_npu
        torch.testing.assert_close(npu.grad.cpu(), cpu.grad)


@pytest.mark.parametrize(
    "shapes",
    [((5,), (5,)), ((5,), (5, 3)), ((2, 5), (5,)), ((2, 3, 5), (5, 4)), ((7, 1, 2, 5), (3, 5, 4)), ((5,), (2, 5, 3))],
)
def test_gradients_of_matmul_broadcast(shapes):
    leaves = {}
    for device in ("cpu", "npu"):
        generator = torch.Generator().manual_seed(1)
        leaves[device] = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]
        (leaves[device][0] @ leaves[device][1]).square().sum().backward()
    for cpu, npu in zip(*leaves.values()):
        torch.testing.assert_close(npu.grad.cpu(), cpu.grad)


@pytest.mark.parametrize("indices", [torch.int32, torch.int64])
@pytest.mark.parametrize("offsets", [torch.int32, torch.int64])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings_have_gradients_by_either_kind_of_index(indices, offsets, mode):
    """The indices that the operator gives back are int32 where both arguments are (op-plugin's EmbeddingBagNpuOpApi.cpp)."""
    number = ["sum", "mean", "max"].index(mode)
    weight = X.to("npu", copy=True).requires_grad_()
    result, *places = torch.embedding_bag(
        weight,
        torch.tensor([2, 1, 1, 0], dtype=indices, device="npu"),
        torch.tensor([0, 1], dtype=offsets, device="npu"),
        mode=number,
    )
    assert {place.dtype for place in places} == {torch.promote_types(indices, offsets)}
    rows = X[[1, 1, 0]]
    second = {"sum": rows.sum(0), "mean": rows.mean(0), "max": rows.max(0).values}[mode]
    torch.testing.assert_close(result.cpu(), torch.stack([X[2], second]))
    result.sum().backward()
    zero_wins = (X[0] > X[1]).float()
    shares = {
        "sum": [torch.ones(6), 2 * torch.ones(6)],
        "mean": [torch.full((6,), 1 / 3), torch.full((6,), 2 / 3)],
        "max": [zero_wins, 1 - zero_wins],
    }[mode]
    expected = torch.stack([*shares, torch.ones(6)])
    torch.testing.assert_close(weight.grad.cpu()[:3], expected)


def test_a_step_of_training():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.LayerNorm(8), torch.nn.GELU(), torch.nn.Linear(8, 3))
    twin = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.LayerNorm(8), torch.nn.GELU(), torch.nn.Linear(8, 3))
    twin.load_state_dict(model.state_dict())
    target = torch.tensor([0, 1, 2, 0])
    for device, module in (("cpu", model), ("npu", twin.npu())):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, foreach=False)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(module(X.to(device)), target.to(device)).backward()
            optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(b.cpu(), a)


def test_tensors_of_two_devices_are_refused():
    with pytest.raises(RuntimeError, match="same device.*is on cpu"):
        X.npu() + Y
    assert torch.equal((X.npu() + torch.tensor(2.0)).cpu(), X + 2)  # a scalar of the CPU is no tensor in this sense


def test_an_operator_that_nothing_serves_names_itself_and_the_function_that_is_missing():
    need_torch(2, 9)
    with report.record() as seen:
        with pytest.raises(
            NotImplementedError, match=r"npu\.npu_sign_bits_pack.* has no kernel.*SignBitsPack.* is not modelled"
        ):
            torch_npu.npu_sign_bits_pack(torch.ones(8).npu(), 1)
    assert seen.missing["npu.npu_sign_bits_pack.default"] == 1


def test_the_error_says_why_nothing_serves_a_documented_operator():
    need_torch(2, 9)
    x, weight = torch.ones(1, 2, 4, 4).npu(), torch.ones(2, 2, 3, 3).npu()
    with pytest.raises(
        NotImplementedError, match=r"npu_conv2d.*\(it is a convolution of CANN's older interface; torch"
    ):
        torch_npu.npu_conv2d(x, weight, None, [1, 1], [1, 1], [1, 1], 1)


def test_the_error_ends_with_the_lines_that_add_a_kernel():
    need_torch(2, 9)
    with pytest.raises(NotImplementedError, match="To add one, in your program") as raised:
        torch_npu.npu_sign_bits_pack(torch.ones(8).npu(), 1)
    lines = textwrap.dedent(str(raised.value).partition("in your program:\n")[2])
    program = {"torch": torch}
    exec(lines.replace(": ...", ": return args[0] * 3"), program)  # the library of it is in `program`
    assert torch_npu.npu_sign_bits_pack(torch.ones(8).npu(), 1).tolist() == [3.0] * 8
    program["library"]._destroy()


def test_a_function_of_cpp_that_is_missing_is_told_by_the_name_that_stands_in_source():
    need_torch(2, 9)
    with report.record() as seen:
        with pytest.raises(
            NotImplementedError, match=r"atb\._npu_quant_rms_norm\.default has no kernel.*atb::.* is not modelled"
        ):
            x, row = torch.ones(2, 128).half().npu(), torch.ones(128).half().npu()
            torch.ops.atb._npu_quant_rms_norm(x, row, row, row[:1], row[:1].char(), x.char())
    assert any(name.startswith("atb::") for name in seen.missing) and not any("_Z" in name for name in seen.missing)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "SGD fused": lambda p: torch.optim.SGD(p, 0.1, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-2, foreach=False),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, 1e-2, foreach=True),
    "Adam fused": lambda p: torch.optim.Adam(p, 1e-2, fused=True),
    "RMSprop foreach": lambda p: torch.optim.RMSprop(p, 1e-2, foreach=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_has_the_losses_of_the_cpu(optimizer):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.LayerNorm(16), torch.nn.Linear(16, 4)]
    model, x, y = torch.nn.Sequential(*layers), torch.randn(32, 8), torch.randn(32, 4)

    def losses(model, x, y):
        step, found = OPTIMIZERS[optimizer](model.parameters()), []
        for _ in range(20):
            step.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            step.step()
            found.append(loss.item())
        return found

    expected = losses(copy.deepcopy(model), x, y)
    found = losses(copy.deepcopy(model).npu(), x.npu(), y.npu())
    assert found == pytest.approx(expected, rel=1e-5) and found[-1] < found[0]


def test_dynamo_does_not_compile_the_kernels_after_a_graph_break():
    """A compiled function that calls operators eagerly: the Python frames behind them are executed, like C++ ones."""
    graphs = []

    def backend(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    @torch._dynamo.disable(recursive=False)
    def eagerly(x):
        return torch.relu(x) - torch.nn.functional.scaled_dot_product_attention(x, x, x)

    torch._dynamo.reset()
    x = torch.randn(1, 4, 8)
    outputs = torch.compile(lambda x: eagerly(x + 1) * 2, backend=backend)(x.npu())
    assert [len(targets) for targets in graphs] == [1, 1]  # the sum, the product
    torch.testing.assert_close(outputs.cpu(), eagerly(x + 1) * 2)
