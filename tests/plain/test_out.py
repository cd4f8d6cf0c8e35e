"""The `out=` form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import cases
import moe_graph
import reference
from moe_graph.foundation import contract
from versions import need_torch

NAMES = moe_graph.MoeReRoutingOutput._fields


def buffers(outputs):
    return [torch.empty_like(x) for x in outputs]


@settings(max_examples=100, deadline=None)
@given(cases.calls())
def test_writes_into_the_buffers(call):
    tokens, counts, arguments = call
    out = buffers(moe_graph.moe_re_routing(tokens, counts, **arguments))
    outputs = moe_graph.moe_re_routing(tokens, counts, **arguments, out=out)
    assert [x.data_ptr() for x in outputs] == [x.data_ptr() for x in out]
    reference.assert_matches(
        out, tokens, counts, arguments["per_token_scales"], arguments["expert_token_num_type"], arguments["idx_type"]
    )


@pytest.fixture
def call():
    tokens, counts = torch.randn(12, 4), cases.make_counts(2, 3, 12)
    return tokens, counts, buffers(moe_graph.moe_re_routing(tokens, counts))


def called_operators(tokens, counts, out):
    """What a call with buffers asks the dispatcher for."""
    called = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(func)
            return func(*args, **(kwargs or {}))

    with Record():
        moe_graph.moe_re_routing(tokens, counts, out=out)
    return called


def test_no_second_copy_of_the_tokens_is_made(call):
    """The rows go straight into the buffer: on the CPU the operator, which allocates its outputs, is not called."""
    called = called_operators(*call)
    assert torch.ops.aten.index_select.out in called
    assert contract.operator() not in called


def test_fake_tensors(call):
    """Shapes alone: no value is read, no address compared."""
    need_torch(2, 5)
    mode = FakeTensorMode()
    tokens, counts, *out = (mode.from_tensor(x) for x in (*call[:2], *call[2]))
    with mode:
        outputs = moe_graph.moe_re_routing(tokens, counts, out=out)
    assert all(x is buffer for x, buffer in zip(outputs, out))


def test_on_another_device_its_own_kernel_is_called(call):
    tokens, counts, out = call
    called = called_operators(tokens.to("meta"), counts.to("meta"), [x.to("meta") for x in out])
    assert contract.operator() in called
    assert torch.ops.aten.index_select.out not in called


def test_none_leaves_an_output_to_be_allocated(call):
    tokens, counts, out = call
    outputs = moe_graph.moe_re_routing(tokens, counts, out=(out[0], None, None, None))
    assert outputs.permute_tokens is not tokens and outputs.permute_tokens.data_ptr() == out[0].data_ptr()
    reference.assert_matches(outputs, tokens, counts)


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[:-1], "must have shape"),
        (lambda x: x.to(torch.float64), "must have dtype"),
        (lambda x: torch.empty((*x.shape, 2), dtype=x.dtype)[..., 0], "must be contiguous"),
        (lambda x: x.to("meta"), "must be on the device of tokens, cpu"),
        (lambda x: "no tensor", "must be a tensor or None, got str"),
    ],
    ids=["shape", "dtype", "strides", "device", "type"],
)
def test_a_buffer_that_does_not_fit_is_named(call, position, spoil, message):
    tokens, counts, out = call
    out[position] = spoil(out[position])
    with pytest.raises(ValueError, match=f"out.{NAMES[position]} {message}"):
        moe_graph.moe_re_routing(tokens, counts, out=out)


def test_overlap_is_refused(call):
    tokens, counts, out = call
    with pytest.raises(ValueError, match="out.permute_tokens must share no memory with tokens"):
        moe_graph.moe_re_routing(tokens, counts, out=(tokens, *out[1:]))
    shared = torch.empty(12, dtype=torch.int32)
    with pytest.raises(
        ValueError, match="out.permute_token_idx must share no memory with out.permute_per_token_scales"
    ):
        moe_graph.moe_re_routing(tokens, counts, out=(out[0], shared.view(torch.float32), shared, out[3]))


def test_wrong_number_of_buffers(call):
    tokens, counts, out = call
    with pytest.raises(ValueError, match="out must hold a buffer or None for each of permute_tokens, .* got 3"):
        moe_graph.moe_re_routing(tokens, counts, out=out[:3])


def test_gradients_are_refused_not_lost(call):
    tokens, counts, out = call
    with pytest.raises(ValueError, match="out= does not support automatic differentiation"):
        moe_graph.moe_re_routing(tokens.requires_grad_(), counts, out=out)
    with torch.no_grad():
        reference.assert_matches(moe_graph.moe_re_routing(tokens, counts, out=out), tokens, counts)


def test_under_torch_compile(call):
    need_torch(2, 5)
    tokens, counts, out = call
    compiled = torch.compile(lambda t, c, o: moe_graph.moe_re_routing(t, c, out=o), backend="aot_eager", fullgraph=True)
    compiled(tokens, counts, out)
    reference.assert_matches(out, tokens, counts)


@pytest.mark.filterwarnings("ignore:ComplexHalf:UserWarning")
@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64], ids=str)
def test_conjugated_tokens(dtype):
    tokens, counts = torch.randn(9, 4, dtype=torch.complex64).to(dtype).conj(), cases.make_counts(2, 3, 9)
    outputs = moe_graph.moe_re_routing(tokens, counts, out=(torch.empty(9, 4, dtype=dtype), None, None, None))
    expected = tokens.to(torch.complex64).resolve_conj()[outputs.permute_token_idx]
    assert tokens.is_conj() and torch.equal(outputs.permute_tokens.to(torch.complex64), expected)
    assert torch.equal(
        moe_graph.moe_re_routing(tokens, counts).permute_tokens.to(torch.complex64).resolve_conj(), expected
    )
    with pytest.raises(ValueError, match="out.permute_tokens must hold its values as they are, got a conjugated"):
        moe_graph.moe_re_routing(tokens, counts, out=(torch.empty(9, 4, dtype=dtype).conj(), None, None, None))
