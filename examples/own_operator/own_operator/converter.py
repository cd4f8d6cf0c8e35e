"""The operator as a node of a GE graph, for torchair."""

from __future__ import annotations

import sys
from typing import Any

import torch


def install_if_torch_npu_is_loaded() -> None:
    """Register the converter where torch_npu is loaded, which brings torchair: on an NPU, and on the simulated device."""
    if "torch_npu" in sys.modules:
        install()


def install() -> None:
    """Register the converter with torchair."""
    import torchair
    from torchair.ge import attr, custom_op

    @torchair.register_fx_node_ge_converter(torch.ops.own_operator.scale_rows.default)
    def convert(x, scale, bias=None, factor=1.0, meta_outputs: Any = None) -> Any:
        """ScaleRows: inputs and attributes by GE's names."""
        return custom_op(
            "ScaleRows",
            inputs={"x": x, "scale": scale, "bias": bias},
            outputs=["y"],
            attrs={"factor": attr.Float(factor)},
        )
