"""On a machine without an NPU: what CANN knows of the GE type, and the kernels that a device has."""

from __future__ import annotations

from torch import Tensor

from moe_graph import plugins
from own_operator.scale_rows import reference

plugins.define("""
    REG_OP(ScaleRows)
        .INPUT(x, TensorType({DT_FLOAT16, DT_BF16, DT_FLOAT}))
        .INPUT(scale, TensorType({DT_FLOAT}))
        .OPTIONAL_INPUT(bias, TensorType({DT_FLOAT}))
        .OUTPUT(y, TensorType({DT_FLOAT16, DT_BF16, DT_FLOAT}))
        .ATTR(factor, Float, 1.0)
        .OP_END_FACTORY_REG(ScaleRows)
""")


@plugins.ge_kernel("ScaleRows")
def node(x: Tensor, scale: Tensor, bias: Tensor | None = None, *, factor: float = 1.0) -> Tensor:
    """The node of a graph: GE's inputs and attributes, by their names."""
    return reference(x, scale, bias, factor)


plugins.npu_kernel("own_operator::scale_rows")(reference)
