"""Registration on plain torch, in processes of their own where the import is what is tested."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import moe_graph


def python(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_import_loads_neither_torchair_nor_torch_npu():
    python("""
import sys, moe_graph, torch
assert not {"torch_npu", "torchair", "google.protobuf", "moe_graph.engine", "moe_graph.simulator"} & set(sys.modules)
assert torch.ops.npu.npu_moe_re_routing(torch.zeros(2, 1), torch.tensor([[1, 1]]))[3].tolist() == [1, 1]
""")


def test_torch_first():
    python("import torch, moe_graph; torch.ops.npu.npu_moe_re_routing", TORCH_DEVICE_BACKEND_AUTOLOAD="0")


def test_the_autoload_switch_is_left_alone():
    python("import os, moe_graph; assert 'TORCH_DEVICE_BACKEND_AUTOLOAD' not in os.environ")
    python(
        "import os, moe_graph; assert os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD'] == '1'",
        TORCH_DEVICE_BACKEND_AUTOLOAD="1",
    )


def test_a_failing_import_of_torch_npu_leaves_the_operator_in_place(tmp_path):
    (tmp_path / "torch_npu.py").write_text("raise ImportError('no CANN')")
    python(
        """
import moe_graph, torch
try:
    import torch_npu
except ImportError as error:
    assert str(error) == "no CANN"
assert moe_graph.status().provider("schema") == "moe_graph"
assert moe_graph.moe_re_routing(torch.zeros(2, 1), torch.tensor([[1, 1]])).expert_token_num.tolist() == [1, 1]
""",
        PYTHONPATH=str(tmp_path),
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )


def test_torch_npu_may_define_the_operator_later(tmp_path):
    """A stand-in for torch_npu that defines the older schema, without tokens_dtype, and a meta kernel from Python."""
    (tmp_path / "torch_npu.py").write_text("""
import torch
library = torch.library.Library("npu", "DEF")
library.define("npu_moe_re_routing(Tensor tokens, Tensor expert_token_num_per_rank, *, Tensor? per_token_scales=None, "
               "int expert_token_num_type=1, int idx_type=0) -> (Tensor, Tensor, Tensor, Tensor)")
meta = torch.library.Library("npu", "IMPL", "Meta")
meta.impl("npu_moe_re_routing", lambda t, c, **k: (t, t, t, t))
class npu:
    is_available = staticmethod(lambda: False)
""")
    python(
        """
import moe_graph, torch
held = torch.ops.npu.npu_moe_re_routing
import torch_npu
status = moe_graph.status()
assert [status.provider(p) for p in ("schema", "fake", "any-device kernel", "autograd")] == ["torch_npu"] + ["moe_graph"] * 3
assert "without tokens_dtype" in str(status)
tokens, counts = torch.arange(10.0).view(5, 2).requires_grad_(), torch.tensor([[1, 2], [2, 0]])
outputs = moe_graph.moe_re_routing(tokens, counts, per_token_scales=torch.rand(5), idx_type=1, expert_token_num_type=0)
assert outputs.permute_token_idx.tolist() == [0, 3, 4, 1, 2] and outputs.expert_token_num.tolist() == [3, 5]
outputs.permute_tokens.sum().backward()
meta = moe_graph.moe_re_routing(tokens.detach().to("meta"), counts.to("meta"))
assert meta.permute_token_idx.dtype == torch.int32
torch.compile(lambda t, c: moe_graph.moe_un_routing(t, c).tokens, backend="aot_eager", fullgraph=True)(tokens, counts)
try:
    moe_graph.moe_re_routing(tokens.byte(), counts, tokens_dtype=290)
except ValueError as error:
    assert "tokens_dtype must be None with this torch_npu, got 290" in str(error)
else:
    raise AssertionError("tokens_dtype was swallowed")
""",
        PYTHONPATH=str(tmp_path),
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )


def test_status_names_who_provides_what():
    status = moe_graph.status()
    parts = ["schema", "fake", "any-device kernel", "autograd"]
    assert [status.provider(part) for part in parts] == ["moe_graph"] * 4
    assert status.provider("NPU kernel") == "nobody"
    assert status.versions["torch"] == torch.__version__
    assert "npu::npu_moe_re_routing" in str(status) and "moe_graph 0.1.0" in str(status)


def test_unregister_and_register_again():
    python("""
import moe_graph, torch
moe_graph.unregister()
moe_graph.unregister()
assert moe_graph.status().provider("schema") == "nobody"
assert not hasattr(torch.ops.npu, "npu_moe_re_routing")
try:
    moe_graph.moe_re_routing(torch.zeros(1, 1), torch.tensor([[1]]))
except AttributeError:
    moe_graph.register()
    moe_graph.register()
assert moe_graph.moe_re_routing(torch.zeros(1, 1), torch.tensor([[1]])).permute_token_idx.tolist() == [0]
assert moe_graph.status().provider("schema") == "moe_graph"
""")


def test_product_settings(monkeypatch):
    from moe_graph.foundation import product

    assert product.current_product().name == "A2"
    monkeypatch.setenv("MOE_GRAPH_PRODUCT", "950")
    assert product.current_product().name == "950"
    moe_graph.set_product("A3")
    try:
        assert product.current_product().name == "A3"
    finally:
        moe_graph.set_product(None)
    assert product.current_product().name == "950"
    monkeypatch.setenv("MOE_GRAPH_PRODUCT", "910")
    with pytest.raises(ValueError, match="MOE_GRAPH_PRODUCT must be one of A2, A3, 950, got '910'"):
        product.current_product()
    with pytest.raises(ValueError, match="product must be one of A2, A3, 950 or None, got 'A5'"):
        moe_graph.set_product("A5")


def test_the_status_is_a_line_and_a_table_in_a_notebook():
    status = moe_graph.status()
    assert "\n" not in repr(status) and "converter" in repr(status)
    assert status._repr_html_().count("<tr>") == len(status.rows) + 1
