"""The operators around `npu_moe_re_routing` in an expert-parallel MoE layer: `moe_graph.operators` under its public name."""

from moe_graph.operators import OPERATORS, Operator

__all__ = ["OPERATORS", "Operator"]
