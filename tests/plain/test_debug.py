"""Forcing the fallback, comparing with it, and the switch for checks on devices."""

from __future__ import annotations

import pytest
import torch

import cases
import moe_graph
from moe_graph.re_routing import fallback


def test_force_fallback_with_gradients_and_inference_mode(monkeypatch):
    calls = []
    original = fallback.re_routing
    monkeypatch.setattr(fallback, "re_routing", lambda *a, **k: calls.append(1) or original(*a, **k))
    tokens, counts = torch.randn(9, 2, requires_grad=True), cases.make_counts(2, 2, 9)
    with moe_graph.force_fallback():
        moe_graph.moe_re_routing(tokens, counts).permute_tokens.sum().backward()
        with torch.inference_mode():
            moe_graph.moe_re_routing(tokens.detach(), counts)
    assert len(calls) == 3 and torch.equal(tokens.grad, torch.ones(9, 2))
    moe_graph.moe_re_routing(tokens, counts)
    assert len(calls) == 3  # the dispatcher holds the original


def test_nothing_to_report():
    tokens, counts = cases.make((20, 3), torch.bfloat16), cases.make_counts(2, 3, 20)
    assert moe_graph.compare_with_fallback(tokens, counts) is None
    assert moe_graph.compare_with_fallback(tokens, counts, per_token_scales=torch.rand(20), idx_type=1) is None


@pytest.mark.parametrize("output", range(4))
def test_first_difference_is_named(output):
    tokens, counts = torch.arange(60.0).view(20, 3), cases.make_counts(2, 3, 20)

    def broken(*args, **kwargs):
        outputs = [x.clone() for x in fallback.re_routing(*args, **kwargs)]
        outputs[output].view(-1)[1:] += 1
        return outputs

    difference = moe_graph.compare_with_fallback(
        tokens, counts, per_token_scales=torch.arange(20.0), implementation=broken
    )
    assert difference.output == moe_graph.MoeReRoutingOutput._fields[output]
    assert difference.position == ((0, 1) if output == 0 else (1,))
    assert difference.kernel == difference.fallback + 1
    assert difference.count == {0: 59, 1: 19, 2: 19, 3: 2}[output]
    assert difference.output in str(difference) and "elements differ" in str(difference)


def test_other_shape_or_dtype_is_a_difference():
    tokens, counts = torch.zeros(4, 2), cases.make_counts(1, 2, 4)

    def broken(*args, **kwargs):
        outputs = fallback.re_routing(*args, **kwargs)
        return (outputs[0][:, :1], *outputs[1:])

    difference = moe_graph.compare_with_fallback(tokens, counts, implementation=broken)
    assert difference.position is None and difference.kernel == "torch.float32 (4, 1)"


def test_nan_and_float8_compare_by_bits():
    tokens, counts = cases.make((20, 3), torch.float8_e4m3fn), cases.make_counts(2, 3, 20)
    assert moe_graph.compare_with_fallback(tokens, counts) is None
    nan = torch.full((4, 1), float("nan"))
    assert moe_graph.compare_with_fallback(nan, torch.tensor([[4]])) is None


def test_check_devices_is_a_switch():
    from moe_graph.foundation import settings

    assert not settings.checks_devices()
    with moe_graph.check_devices():
        assert settings.checks_devices()
        with moe_graph.check_devices(False):
            assert not settings.checks_devices()
        assert settings.checks_devices()
    assert not settings.checks_devices()
