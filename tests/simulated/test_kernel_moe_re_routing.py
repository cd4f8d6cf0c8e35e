"""`torch_npu.npu_moe_re_routing` through torch_npu's own C++ adapter: right within the kernel's limits, clear errors outside."""

import threading

import pytest
import torch
import torch_npu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moe_graph
from cases import make, make_counts, make_scales
from moe_graph import simulator
from reference import assert_matches
from versions import need_float8, need_tokens_dtype

EVERYWHERE = [torch.float16, torch.bfloat16, torch.int8]
SOC = "MOE_GRAPH_SIM_SOC"


@pytest.fixture(params=["A2", "A3", "950"])
def soc(request, monkeypatch):
    monkeypatch.setenv(SOC, request.param)
    return request.param


@pytest.fixture
def ascend_950(monkeypatch):
    monkeypatch.setenv(SOC, "950")


def re_route(tokens, counts, scales=None, **arguments):
    return torch_npu.npu_moe_re_routing(
        tokens.npu(), counts.npu(), per_token_scales=None if scales is None else scales.npu(), **arguments
    )


@given(
    ranks=st.integers(1, 8),
    experts=st.sampled_from([1, 2, 5, 64]),
    count=st.integers(0, 96),
    hidden=st.integers(1, 9),
    dtype=st.sampled_from(EVERYWHERE),
    counts_dtype=st.sampled_from([torch.int32, torch.int64]),
    scaled=st.booleans(),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_matches_the_reference(soc, ranks, experts, count, hidden, dtype, counts_dtype, scaled, seed):
    tokens, counts = make((count, hidden), dtype, seed), make_counts(ranks, experts, count, counts_dtype, seed)
    scales = make((count,), torch.float32, seed + 1) if scaled else None
    assert_matches(re_route(tokens, counts, scales), tokens, counts, scales)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("idx_type", [0, 1])
def test_what_ascend_950_adds(ascend_950, dtype, idx_type):
    need_float8()
    tokens, counts = make((50, 12), dtype), make_counts(3, 5, 50)
    for kind in ("A,S", "A,K/64,2", "A"):
        scales = make_scales(50, kind)
        assert_matches(re_route(tokens, counts, scales, idx_type=idx_type), tokens, counts, scales, idx_type=idx_type)


@pytest.mark.parametrize(
    "tokens_dtype, operand",
    [
        ("hifloat8", ("HIFLOAT8", (50, 12))),
        ("float4_e2m1fn_x2", ("FLOAT4_E2M1", (50, 24))),
        ("float4_e1m2fn_x2", ("FLOAT4_E1M2", (50, 24))),
    ],
)
def test_tokens_stored_as_bytes(ascend_950, tokens_dtype, operand):
    need_tokens_dtype()
    tokens, counts = make((50, 12), torch.uint8), make_counts(3, 5, 50)
    assert_matches(re_route(tokens, counts, tokens_dtype=getattr(torch_npu, tokens_dtype)), tokens, counts)
    assert simulator.kernel_calls()[-1].tokens == simulator.Operand(*operand, True)


def test_scales_stored_as_bytes(ascend_950):
    need_float8()
    tokens, counts, scales = make((20, 4), torch.float8_e5m2), make_counts(2, 3, 20), make((20, 2, 2), torch.uint8)
    assert_matches(re_route(tokens, counts, scales), tokens, counts, scales)
    assert simulator.kernel_calls()[-1].per_token_scales.dtype == "FLOAT8_E8M0"


def test_documented_shape():
    tokens, counts = make((16384, 7168), torch.int8), torch.full((16, 16), 64, dtype=torch.int32)
    scales = make((16384,), torch.float32)
    assert_matches(re_route(tokens, counts, scales), tokens, counts, scales)


def test_strided_inputs_are_taken_as_aclnn_takes_them():
    wide, counts = make((40, 20), torch.float16), make_counts(4, 3, 40)
    tokens = wide.npu()[:, 3:11]
    scales = torch.rand(40, 2).npu()[:, 1]
    transposed = counts.t().contiguous().npu().t()
    assert not (tokens.is_contiguous() or scales.is_contiguous() or transposed.is_contiguous())
    outputs = torch_npu.npu_moe_re_routing(tokens, transposed, per_token_scales=scales)
    assert_matches(outputs, wide[:, 3:11].contiguous(), counts, scales.cpu())
    call = simulator.kernel_calls()[-1]
    assert not call.tokens.contiguous and not call.expert_token_num_per_rank.contiguous


def test_the_way_back_is_the_transposed_call():
    tokens, counts = make((64, 8), torch.bfloat16), make_counts(4, 6, 64)
    there = re_route(tokens, counts)[0]
    back = torch_npu.npu_moe_re_routing(there, counts.t().contiguous().npu())[0]
    assert torch.equal(back.cpu().view(torch.int16), tokens.view(torch.int16))


def test_calls_are_recorded():
    before = len(simulator.kernel_calls())
    re_route(make((6, 5), torch.int8), make_counts(2, 3, 6, torch.int64), make((6,), torch.float32))
    calls = simulator.kernel_calls()
    assert len(calls) == before + 1
    call = calls[-1]
    assert call.number == len(calls)
    assert call.tokens == simulator.Operand("INT8", (6, 5), True)
    assert call.expert_token_num_per_rank == simulator.Operand("INT64", (2, 3), True)
    assert call.per_token_scales == simulator.Operand("FLOAT", (6,), True)
    assert (call.expert_token_num_type, call.idx_type, call.device, call.status) == (1, 0, 0, 0)


def test_threads_do_not_disturb_each_other():
    failures = []

    def work(seed):
        try:
            torch.npu.set_device(0)
            tokens, counts = make((200, 16), torch.float16, seed), make_counts(4, 8, 200, seed=seed)
            for _ in range(20):
                assert_matches(re_route(tokens, counts), tokens, counts)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def counts_of(*rows):
    return torch.tensor(rows, dtype=torch.int32)


GOOD = (torch.zeros(4, 3, dtype=torch.float16), counts_of([1, 1], [2, 0]))
FP8 = torch.zeros(4, 3, dtype=torch.float8_e4m3fn)
ON_A2_AND_A3 = {
    "dtype of tokens": (
        FP8,
        GOOD[1],
        {},
        r"tokens must be FLOAT16, BF16 or INT8 on Atlas A2 and A3, got FLOAT8_E4M3FN \[4, 3\]",
    ),
    "idx_type 1": (*GOOD, {"idx_type": 1}, r"idx_type must be 0 \(gather\) on Atlas A2 and A3, got 1"),
    "2-D scales": (
        *GOOD,
        {"scales": torch.zeros(4, 2)},
        r"per_token_scales must be FLOAT \[A\] on Atlas A2 and A3, got FLOAT \[4, 2\]",
    ),
    "tokens_dtype": (
        torch.zeros(4, 4, dtype=torch.uint8),
        GOOD[1],
        {"tokens_dtype": 290},
        "tokens must be FLOAT16, BF16 or INT8 on Atlas A2 and A3, got HIFLOAT8",
    ),
}
ANYWHERE = {
    "float32 tokens": (torch.zeros(4, 3), GOOD[1], {}, "tokens must be .*, got FLOAT "),
    "3-D tokens": (
        torch.zeros(4, 3, 2, dtype=torch.float16),
        GOOD[1],
        {},
        r"tokens must be 2-D \[A, H\], got FLOAT16 \[4, 3, 2\]",
    ),
    "H = 16384": (torch.zeros(4, 16384, dtype=torch.int8), GOOD[1], {}, "0 < H < 16384"),
    "H = 0": (torch.zeros(4, 0, dtype=torch.int8), GOOD[1], {}, "0 < H < 16384"),
    "float counts": (GOOD[0], GOOD[1].float(), {}, "expert_token_num_per_rank must be INT32 or INT64, got FLOAT"),
    "3-D counts": (GOOD[0], GOOD[1][None], {}, r"expert_token_num_per_rank must be 2-D \[N, E\]"),
    "no ranks": (GOOD[0][:0], torch.zeros(0, 2, dtype=torch.int32), {}, "N, E >= 1"),
    "no experts": (GOOD[0][:0], torch.zeros(2, 0, dtype=torch.int32), {}, "N, E >= 1"),
    "cumsum": (*GOOD, {"expert_token_num_type": 0}, r"expert_token_num_type must be 1 \(count\), got 0"),
    "idx_type 2": (*GOOD, {"idx_type": 2}, "idx_type must be 0"),
    "length of scales": (*GOOD, {"scales": torch.zeros(5)}, "per_token_scales must be of A = 4 rows"),
    "dtype of scales": (*GOOD, {"scales": torch.zeros(4, dtype=torch.float16)}, "per_token_scales must be FLOAT"),
}
AT_RUN_TIME = {
    "negative count": (
        GOOD[0],
        counts_of([3, 1], [-2, 2]),
        r"expert_token_num_per_rank\[1, 0\] must not be negative, got -2",
    ),
    "sum too small": (GOOD[0], counts_of([1, 1], [1, 0]), "the sum of expert_token_num_per_rank must be A = 4, got 3"),
    "sum too large": (
        GOOD[0],
        counts_of([1, 1], [3, 0]),
        "the sum of expert_token_num_per_rank must be A = 4, but exceeds it",
    ),
    "sum overflows": (GOOD[0], torch.full((2, 2), 2**62, dtype=torch.int64), "must be A = 4, but exceeds it"),
}


@pytest.mark.parametrize("case", ANYWHERE)
def test_limits_of_every_product(soc, case):
    tokens, counts, arguments, message = ANYWHERE[case]
    before = len(simulator.kernel_calls())
    with pytest.raises(RuntimeError, match=message):
        re_route(tokens, counts, **arguments)
    assert len(simulator.kernel_calls()) == before  # refused before the launch


@pytest.mark.parametrize("case", ON_A2_AND_A3)
@pytest.mark.parametrize("product", ["A2", "A3"])
def test_limits_of_a2_and_a3(monkeypatch, product, case):
    monkeypatch.setenv(SOC, product)
    tokens, counts, arguments, message = ON_A2_AND_A3[case]
    if "tokens_dtype" in arguments:
        need_tokens_dtype()
    if tokens.dtype == FP8.dtype:
        need_float8()
    with pytest.raises(RuntimeError, match=message):
        re_route(tokens, counts, **arguments)


@pytest.mark.parametrize("case", AT_RUN_TIME)
def test_counts_are_checked_at_run_time(soc, case):
    tokens, counts, message = AT_RUN_TIME[case]
    with pytest.raises(RuntimeError, match=message):
        re_route(tokens, counts)
        torch.npu.synchronize()
    assert simulator.kernel_calls()[-1].status != 0
    assert_matches(re_route(*GOOD), *GOOD)  # the device goes on


def test_buffers_are_filled_by_the_kernel():
    tokens, counts, scales = make((20, 8), torch.int8), make_counts(3, 4, 20), make_scales(20, "A")
    inputs = [x.npu() for x in (tokens, counts, scales)]
    out = [torch.empty_like(x) for x in re_route(tokens, counts, scales)]
    before = len(simulator.kernel_calls())
    outputs = moe_graph.moe_re_routing(*inputs[:2], per_token_scales=inputs[2], out=out)
    assert len(simulator.kernel_calls()) == before + 1
    assert [x.data_ptr() for x in outputs] == [x.data_ptr() for x in out]
    assert_matches(out, tokens, counts, scales)
    with pytest.raises(ValueError, match="out.permute_tokens must share no memory with tokens"):
        moe_graph.moe_re_routing(*inputs[:2], per_token_scales=inputs[2], out=(inputs[0], *out[1:]))


@pytest.mark.parametrize(
    "counts", [[[2_000_000_000, -1_999_999_980]], [[30, -10]], [[-5, 25]], [[5, 25]], [[5, 5]], [[2**62] * 4]]
)
def test_the_forced_fallback_checks_counts_before_it_computes(counts):
    """Its kernels run on host memory here, and one of them writes before it looks."""
    tokens, counts = torch.randn(20, 8).npu(), torch.tensor(counts).npu()
    with moe_graph.force_fallback(), pytest.raises(ValueError, match="expert_token_num_per_rank must be counts"):
        torch.ops.npu.npu_moe_re_routing(tokens, counts)
