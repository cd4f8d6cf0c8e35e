"""The operators around `npu_moe_re_routing` in an expert-parallel MoE layer."""
