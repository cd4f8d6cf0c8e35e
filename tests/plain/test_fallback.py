"""The eager fallback on CPU tensors against the reference."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings

import cases
import moe_graph
import reference
from moe_graph.foundation import compat
from moe_graph.re_routing import index


def check(outputs, tokens, counts, arguments):
    reference.assert_matches(
        outputs,
        tokens,
        counts,
        arguments["per_token_scales"],
        arguments["expert_token_num_type"],
        arguments["idx_type"],
    )


@settings(max_examples=300, deadline=None)
@given(cases.calls())
def test_matches_the_reference(call):
    tokens, counts, arguments = call
    check(moe_graph.moe_re_routing(tokens, counts, **arguments), tokens, counts, arguments)


@pytest.mark.parametrize("dtype", cases.ALL_DTYPES, ids=str)
@pytest.mark.parametrize("expert_token_num_type", [0, 1])
@pytest.mark.parametrize("idx_type", [0, 1])
def test_every_dtype_and_mode(dtype, expert_token_num_type, idx_type):
    tokens = cases.make((37, 6), dtype)
    counts = cases.make_counts(4, 3, 37)
    arguments = dict(per_token_scales=None, expert_token_num_type=expert_token_num_type, idx_type=idx_type)
    check(torch.ops.npu.npu_moe_re_routing(tokens, counts, **arguments), tokens, counts, arguments)


@pytest.mark.parametrize("tokens_dtype", [290, 296, 297])
def test_tokens_stored_as_uint8(tokens_dtype):
    tokens, counts = cases.make((20, 8), torch.uint8), cases.make_counts(2, 5, 20)
    outputs = moe_graph.moe_re_routing(tokens, counts, tokens_dtype=tokens_dtype)
    reference.assert_matches(outputs, tokens, counts)


def test_a_torch_npu_without_tokens_dtype_is_named(monkeypatch):
    """Several releases' schema lacks it; without it the call is as ever."""
    monkeypatch.setattr(compat, "has_argument", lambda operator, name: name != "tokens_dtype")
    tokens, counts = torch.zeros(3, 4, dtype=torch.uint8), cases.make_counts(1, 2, 3)
    moe_graph.moe_re_routing(tokens, counts)
    with pytest.raises(ValueError, match="tokens_dtype must be None with this torch_npu, got 290"):
        moe_graph.moe_re_routing(tokens, counts, tokens_dtype=290)


def test_thousands_of_tokens():
    tokens, counts = torch.randn(5000, 3), cases.make_counts(8, 16, 5000)
    reference.assert_matches(moe_graph.moe_re_routing(tokens, counts), tokens, counts)


def test_layouts_that_are_not_contiguous():
    tokens = cases.make((6, 40), torch.bfloat16).t()
    counts = cases.make_counts(5, 4, 40).t().contiguous().t()
    scales = cases.make((80,), torch.float32)[::2]
    outputs = moe_graph.moe_re_routing(tokens, counts, per_token_scales=scales)
    reference.assert_matches(outputs, tokens, counts, scales)
    assert all(output.is_contiguous() for output in outputs)


def test_tensors_by_name():
    tokens, counts = torch.randn(9, 3), cases.make_counts(2, 3, 9)
    outputs = moe_graph.moe_re_routing(expert_token_num_per_rank=counts, tokens=tokens)
    reference.assert_matches(outputs, tokens, counts)


def test_second_output_without_scales_is_zero():
    tokens, counts = cases.make((50, 4), torch.int8), cases.make_counts(2, 5, 50)
    assert torch.equal(moe_graph.moe_re_routing(tokens, counts).permute_per_token_scales, torch.zeros(50))


@pytest.mark.parametrize(
    ("counts", "what"),
    [
        ([[3, -1], [4, 4]], "a negative count, -1"),
        ([[3, 1], [4, 4]], "sum 12"),
        ([[3, 1], [4, 1]], "sum 9"),
        ([[2**31 - 1, 2**31 - 1], [4, 4]], "sum 4294967302"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bad_counts_are_refused_before_anything_is_written(counts, what, dtype):
    tokens = torch.zeros(10, 3)
    out = [torch.full_like(x, 7) for x in moe_graph.moe_re_routing(tokens, torch.tensor([[10]]).expand(1, 1))]
    out[3] = torch.full((2,), 7, dtype=dtype)
    with pytest.raises(ValueError, match=f"expert_token_num_per_rank must be .*got {what}"):
        moe_graph.moe_re_routing(tokens, torch.tensor(counts, dtype=dtype), out=out)
    assert all(bool((x == 7).all()) for x in out)
    with pytest.raises(ValueError, match=f"expert_token_num_per_rank must be .*got {what}"):
        torch.ops.npu.npu_moe_re_routing(tokens, torch.tensor(counts, dtype=dtype))


@pytest.mark.parametrize(
    ("count", "counts", "what"),
    [
        (5, [[-3, 8]], "a negative count, -3"),
        (5, [[8, -3]], "a negative count, -3"),
        (0, [[-3, 3]], "a negative count, -3"),
        (5, [[2**63 - 1, 2**63 - 1, 7]], f"sum {2**64 + 5}"),  # 5, if it wrapped around
    ],
)
def test_counts_that_sum_to_a_and_are_none_are_refused(count, counts, what):
    """torch's repeat_interleave, asked with these, writes outside of its memory."""
    with pytest.raises(ValueError, match=f"expert_token_num_per_rank must be .*got {what}"):
        moe_graph.moe_re_routing(torch.zeros(count, 2), torch.tensor(counts))


def test_counts_on_a_device_are_not_read():
    """That would make the host wait; the meta device has no values at all."""
    tokens, counts = torch.zeros(10, 3, device="meta"), torch.zeros(2, 2, dtype=torch.int64, device="meta")
    with moe_graph.force_fallback():
        outputs = torch.ops.npu.npu_moe_re_routing(tokens, counts)
        with moe_graph.check_devices(), pytest.raises(NotImplementedError):
            torch.ops.npu.npu_moe_re_routing(tokens, counts)
    assert [tuple(x.shape) for x in outputs] == [(10, 3), (10,), (10,), (2,)]


def test_more_tokens_than_an_int32_index_can_name():
    tokens = torch.zeros(1, dtype=torch.int8).expand(2**31, 1)
    with pytest.raises(ValueError, match="tokens must be of at most 2147483647 rows .*, got 2147483648"):
        moe_graph.moe_re_routing(tokens, torch.tensor([[2**31]]))
    with pytest.raises(ValueError, match="counts that sum to A = 2147483647, the rows of tokens, got sum 2147483646"):
        moe_graph.moe_re_routing(tokens[1:], torch.tensor([[2**31 - 2]]))


def test_index_memory_is_linear(monkeypatch):
    """64 x 256 chunks and A = 1000: the index never allocates anything the size of A x N or A x E."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    counts = cases.make_counts(64, 256, 1000)
    with Watch():
        index.gather_index(counts, 1000)
    assert 1000 <= largest <= 64 * 256


def test_eight_threads_agree_with_the_reference():
    calls = [
        (
            cases.make((200, 5), torch.float16, seed),
            cases.make_counts(4, 8, 200, seed=seed),
            cases.make((200,), torch.float32, seed),
        )
        for seed in range(8)
    ]

    def work(call):
        tokens, counts, scales = call
        for _ in range(50):
            outputs = moe_graph.moe_re_routing(tokens, counts, per_token_scales=scales)
        reference.assert_matches(outputs, tokens, counts, scales)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, calls))


@settings(max_examples=100, deadline=None)
@given(cases.calls())
def test_un_routing_is_the_exact_inverse(call):
    tokens, counts, arguments = call
    scales = arguments["per_token_scales"]
    routed = moe_graph.moe_re_routing(tokens, counts, **arguments)
    back = moe_graph.moe_un_routing(
        routed.permute_tokens, counts, None if scales is None else routed.permute_per_token_scales
    )
    assert (reference.as_bytes(back.tokens) == reference.as_bytes(tokens)).all()
    if scales is None:
        assert back.per_token_scales is None
    else:
        assert (reference.as_bytes(back.per_token_scales) == reference.as_bytes(scales)).all()


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8, torch.qint32], ids=str)
def test_quantized_tokens(dtype):
    tokens, counts = torch.quantize_per_tensor(torch.randn(20, 8), 0.1, 3, dtype), cases.make_counts(2, 5, 20)
    outputs = moe_graph.moe_re_routing(tokens, counts)
    reference.assert_matches(
        outputs._replace(permute_tokens=outputs.permute_tokens.int_repr()), tokens.int_repr(), counts
    )
    assert (outputs[0].q_scale(), outputs[0].q_zero_point(), outputs[0].dtype) == (0.1, 3, dtype)
    with pytest.raises(ValueError, match="out.permute_tokens must be None for quantized tokens"):
        moe_graph.moe_re_routing(tokens, counts, out=(tokens.clone(), None, None, None))
    by_channel = torch.quantize_per_channel(
        torch.randn(20, 8), torch.ones(8), torch.zeros(8, dtype=torch.long), 1, dtype
    )
    with pytest.raises(ValueError, match="tokens must be quantized by tensor, if it is quantized, got .*per_channel"):
        moe_graph.moe_re_routing(by_channel, counts)
