"""The fake implementation: shapes and dtypes on the meta device and with symbolic sizes, and bad input rejected while tracing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import cases
import moe_graph
from versions import need_torch

operator = torch.ops.npu.npu_moe_re_routing


def properties(outputs):
    return [(tuple(x.shape), x.dtype, x.stride()) for x in outputs]


@settings(max_examples=100, deadline=None)
@given(cases.calls())
def test_meta_agrees_with_the_fallback(call):
    tokens, counts, arguments = call
    expected = properties(operator(tokens, counts, **arguments))
    scales = arguments["per_token_scales"]
    arguments["per_token_scales"] = None if scales is None else scales.to("meta")
    outputs = operator(tokens.to("meta"), counts.to("meta"), **arguments)
    assert properties(outputs) == expected
    assert all(x.device.type == "meta" for x in outputs)


def test_tokens_of_unknown_length():
    """A data-dependent A, as after an AlltoAll with split sizes, has no hint at all."""
    need_torch(2, 5)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        length = mode.shape_env.create_unbacked_symint()
        tokens = torch.empty((length, 4), dtype=torch.int8)
        outputs = operator(tokens, torch.empty(2, 3, dtype=torch.int32), per_token_scales=torch.empty(length))
    assert outputs[0].shape[0] is tokens.shape[0] or outputs[0].shape[0] == length


BAD = {
    "tokens of rank 1": (dict(tokens=(12,)), r"tokens must be of shape \[A, H\] \(rank 2\), got shape \(12,\)"),
    "tokens of rank 3": (
        dict(tokens=(12, 4, 1)),
        r"tokens must be of shape \[A, H\] \(rank 2\), got shape \(12, 4, 1\)",
    ),
    "H of 0": (dict(tokens=(12, 0)), r"tokens must be of shape \[A, H\] with H >= 1, got shape \(12, 0\)"),
    "counts of rank 1": (
        dict(counts=(6,)),
        r"expert_token_num_per_rank must be of shape \[N, E\] \(rank 2\), got shape \(6,\)",
    ),
    "counts of rank 3": (
        dict(counts=(2, 3, 1)),
        r"expert_token_num_per_rank must be of shape \[N, E\] \(rank 2\), got shape \(2, 3, 1\)",
    ),
    "N of 0": (
        dict(counts=(0, 3)),
        r"expert_token_num_per_rank must be of shape \[N, E\] with N >= 1 and E >= 1, got shape \(0, 3\)",
    ),
    "E of 0": (
        dict(counts=(2, 0)),
        r"expert_token_num_per_rank must be of shape \[N, E\] with N >= 1 and E >= 1, got shape \(2, 0\)",
    ),
    "float counts": (
        dict(counts_dtype=torch.float32),
        "expert_token_num_per_rank must be torch.int32 or torch.int64, got torch.float32",
    ),
    "scales too long": (
        dict(scales=(13,)),
        r"per_token_scales must be of length A = 12, the rows of tokens, got shape \(13,\)",
    ),
    "scales too short": (
        dict(scales=(11,)),
        r"per_token_scales must be of length A = 12, the rows of tokens, got shape \(11,\)",
    ),
    "scales of rank 0": (
        dict(scales=()),
        r"per_token_scales must be of shape \[A\], \[A, S\] or \[A, K/64, 2\], got shape \(\)",
    ),
    "scales of rank 4": (
        dict(scales=(12, 1, 1, 1)),
        r"per_token_scales must be of shape \[A\], \[A, S\] or \[A, K/64, 2\], got shape \(12, 1, 1, 1\)",
    ),
    "scales of rank 3, by threes": (
        dict(scales=(12, 2, 3)),
        r"per_token_scales must be \[A, K/64, 2\] when it has rank 3, got shape \(12, 2, 3\)",
    ),
    "scales of rank 3, one by one": (
        dict(scales=(12, 2, 1)),
        r"per_token_scales must be \[A, K/64, 2\] when it has rank 3, got shape \(12, 2, 1\)",
    ),
    "expert_token_num_type": (dict(expert_token_num_type=2), "expert_token_num_type must be one of 0, 1, got 2"),
    "idx_type": (dict(idx_type=-1), "idx_type must be one of 0, 1, got -1"),
    "tokens_dtype": (dict(tokens_dtype=291), "tokens_dtype must be one of 290, 296, 297, got 291"),
    "tokens_dtype on floats": (
        dict(tokens_dtype=290),
        "tokens must be torch.uint8 when tokens_dtype=290 is given, got torch.float32",
    ),
}


def bad_call(device, tokens=(12, 4), counts=(2, 3), counts_dtype=torch.int32, scales=None, **attributes):
    count_values = torch.zeros(counts, dtype=counts_dtype)
    if count_values.numel():
        count_values.view(-1)[0] = tokens[0]
    if scales is not None:
        attributes["per_token_scales"] = torch.zeros(scales, device=device)
    return (torch.zeros(tokens, device=device), count_values.to(device)), attributes


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("function", [operator, moe_graph.moe_re_routing], ids=["operator", "moe_re_routing"])
def test_bad_input_is_refused(case, device, function):
    spoiled, message = BAD[case]
    args, attributes = bad_call(device, **spoiled)
    with pytest.raises(ValueError, match=message):
        function(*args, **attributes)


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_bad_input_is_refused_while_tracing(case, dynamic):
    spoiled, message = BAD[case]
    args, attributes = bad_call("cpu", **spoiled)

    def backend(graph, inputs):
        pytest.fail("bad input reached the backend")

    if dynamic:  # sizes are symbols then: "got shape (s0, 4)"
        message = message.partition(", got shape")[0].replace("A = 12", r"A = s\d+")
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.TorchRuntimeError, match=message):
        torch.compile(lambda *a, **k: operator(*a, **k), backend=backend, fullgraph=True, dynamic=dynamic)(
            *args, **attributes
        )


def test_tensors_on_two_devices():
    tokens, counts = torch.zeros(12, 4), torch.zeros(2, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match="expert_token_num_per_rank must be on the device of tokens, cpu, got meta"):
        moe_graph.moe_re_routing(tokens, counts.to("meta"))
    with pytest.raises(ValueError, match="per_token_scales must be on the device of tokens, cpu, got meta"):
        moe_graph.moe_re_routing(tokens, counts, per_token_scales=torch.zeros(12, device="meta"))


def test_an_attribute_is_no_bool():
    # The dispatcher turns True into 1; the Python checks see it where they are called directly.
    from moe_graph.foundation import validation

    with pytest.raises(ValueError, match="idx_type must be one of 0, 1, got True"):
        validation.check_arguments(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.int32), idx_type=True)


@pytest.mark.parametrize("counts", [torch.tensor([3]), torch.tensor([[[3]]])], ids=["rank 1", "rank 3"])
def test_un_routing_names_its_counts(counts):
    with pytest.raises(ValueError, match=r"moe_un_routing: expert_token_num_per_rank must be of shape \[N, E\]"):
        moe_graph.moe_un_routing(torch.zeros(3, 2), counts)
