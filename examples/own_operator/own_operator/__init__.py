"""The operator `torch.ops.own_operator.scale_rows`, and its lowering to GE."""

from own_operator import converter, scale_rows

__all__ = ["converter", "scale_rows"]

converter.install_if_torch_npu_is_loaded()
