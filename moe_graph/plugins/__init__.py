"""Operators of your own on the simulated device: a GE type's definition, its kernel in the host engine, and the kernel on NPU tensors.

    from moe_graph import plugins

    plugins.define('''
        REG_OP(ScaleRows)
            .INPUT(x, TensorType({DT_FLOAT16, DT_BF16, DT_FLOAT}))
            .INPUT(scale, TensorType({DT_FLOAT}))
            .OUTPUT(y, TensorType({DT_FLOAT16, DT_BF16, DT_FLOAT}))
            .OP_END_FACTORY_REG(ScaleRows)
    ''')

    @plugins.ge_kernel("ScaleRows")
    def scale_rows_node(x: Tensor, scale: Tensor) -> Tensor: ...  # CPU tensors; GE's names

    @plugins.npu_kernel("my_ops::scale_rows")
    def scale_rows(x, scale): ...  # CPU tensors; the schema's arguments

A package names its module of such declarations as an entry point of the group `moe_graph.plugins`, and it is imported when the simulated
device has started; or a `conftest.py`, or the program itself, holds them. On an NPU they change nothing: there CANN has the definitions
and kernels. `examples/own_operator` is a whole package to copy; `moe-graph new-operator` writes one.
"""

from moe_graph.definitions.definition import Attribute, Definition, Port
from moe_graph.plugins.declare import define, ge_kernel
from moe_graph.plugins.npu_kernels import npu_kernel

__all__ = ["Attribute", "Definition", "Port", "define", "ge_kernel", "npu_kernel"]
