"""Two copies of the kernel's limits agree: `foundation.product` (what the converter lowers by) and the simulated kernel (in C)."""

import itertools
import sys

import pytest
import torch
import torch_npu

from moe_graph.engine.kernels.moe_re_routing import moe_re_routing
from moe_graph.foundation import compat, product
from versions import need_tokens_dtype

A, H = 6, 4
COUNTS = torch.tensor([[1, 2], [3, 0]], dtype=torch.int32)
TOKENS = [
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.uint8,
    torch.float32,
    torch.int32,
    *(
        (torch.float8_e4m3fn, torch.float8_e5m2) if compat.TORCH >= (2, 7) else ()
    ),  # torch_npu takes none to the device before
]
SCALES = {
    "none": None,
    "A": torch.zeros(A),
    "A,S": torch.zeros(A, 3),
    "A,1,2": torch.zeros(A, 1, 2),
    "half": torch.zeros(A, dtype=torch.float16),
    "bytes": torch.zeros(A, 1, 2, dtype=torch.uint8),
}
if compat.TORCH < (2, 7):  # torch_npu does not take bytes for float8_e8m0 before
    del SCALES["bytes"]
if compat.TORCH == (2, 5):  # that torch_npu makes the scales' output [A], whatever their rank
    del SCALES["A,S"], SCALES["A,1,2"]
if hasattr(torch, "float8_e8m0fnu"):
    SCALES["e8m0"] = SCALES["bytes"].view(torch.float8_e8m0fnu)
    SCALES["flat e8m0"] = torch.zeros(A, dtype=torch.uint8).view(torch.float8_e8m0fnu)


@pytest.mark.parametrize("name", ["A2", "A3", "950"])
def test_whom_is_lowered_for(monkeypatch, name):
    """The environment comes before the device; without a device it is A2. The rest needs none: test_product_settings."""
    monkeypatch.setenv("MOE_GRAPH_SIM_SOC", name)
    assert product.current_product() is product.PRODUCTS[name]
    monkeypatch.setenv("MOE_GRAPH_PRODUCT", "950")
    assert product.current_product().name == "950"
    monkeypatch.delenv("MOE_GRAPH_PRODUCT")
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    assert product.current_product().name == "A2"


def accepts(tokens, **arguments):
    try:
        torch_npu.npu_moe_re_routing(tokens.npu(), COUNTS.npu(), **arguments)
    except RuntimeError as error:
        assert "simulated device: aclnnMoeReRouting: " in str(error)
        return False
    return True


def says(name, tokens, **arguments):
    limits = product.PRODUCTS[name]
    refused = product.unsupported(limits, tokens, **arguments)
    travels = 2 * H if arguments.get("tokens_dtype") in (296, 297) else tokens.shape[1]
    return limits.fits(travels) and not any(vars(refused).values())


@pytest.mark.parametrize("name", ["A2", "A3", "950"])
def test_dtypes_scales_and_attributes(monkeypatch, name):
    monkeypatch.setenv("MOE_GRAPH_SIM_SOC", name)
    accepted = 0
    for dtype, scales, count_type, idx_type in itertools.product(TOKENS, SCALES, (0, 1), (0, 1)):
        tokens = torch.zeros(A, H * 4, dtype=torch.uint8).view(dtype)
        arguments = {"expert_token_num_type": count_type, "idx_type": idx_type}
        if SCALES[scales] is not None:
            arguments["per_token_scales"] = SCALES[scales]
        expected = says(name, tokens, **arguments)
        on_device = {key: value.npu() if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}
        assert accepts(tokens, **on_device) == expected, (dtype, scales, arguments)
        accepted += expected
    assert accepted > 5


@pytest.mark.parametrize("name", ["A2", "A3", "950"])
@pytest.mark.parametrize("tokens_dtype", [290, 296, 297])
def test_tokens_dtype(monkeypatch, name, tokens_dtype):
    need_tokens_dtype()
    monkeypatch.setenv("MOE_GRAPH_SIM_SOC", name)
    tokens = torch.zeros(A, H, dtype=torch.uint8)
    assert (
        accepts(tokens, tokens_dtype=tokens_dtype) == says(name, tokens, tokens_dtype=tokens_dtype) == (name == "950")
    )


@pytest.mark.parametrize("name", ["A2", "A3", "950"])
@pytest.mark.parametrize("hidden", [0, 1, 16383, 16384])
def test_hidden(monkeypatch, name, hidden):
    monkeypatch.setenv("MOE_GRAPH_SIM_SOC", name)
    tokens = torch.zeros(A, hidden, dtype=torch.int8)
    assert accepts(tokens) == says(name, tokens) == (0 < hidden < 16384)


REFUSED = {
    "tokens of torch.float32": dict(tokens=torch.zeros(A, H)),
    "tokens with H = 0": dict(tokens=torch.zeros(A, 0, dtype=torch.int8)),
    "tokens with H = 16384": dict(tokens=torch.zeros(A, 16384, dtype=torch.int8)),
    "per_token_scales of this dtype and rank": dict(per_token_scales=torch.zeros(A, 3)),
    "idx_type=1": dict(idx_type=1),
    "expert_token_num_type=0": dict(expert_token_num_type=0),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_node_is_refused_what_the_kernel_lacks(what):
    """A lowering that asks for it fails here, before it meets a device."""
    arguments = {"tokens": torch.zeros(A, H, dtype=torch.int8), **REFUSED[what]}
    with pytest.raises(ValueError, match=f"the kernel of A2 serves no {what}$"):
        moe_re_routing(expert_token_num_per_rank=COUNTS, **arguments)
