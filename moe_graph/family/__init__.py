"""The operators around `npu_moe_re_routing` in an expert-parallel MoE layer, a module each, in the order of the layer.

Each module holds the checks of its arguments, the fake implementation, the any-device fallback, and OPERATOR, its declaration.

    declaration   how an operator is declared          checks         the checks' errors
    dtypes        dtypes by number                     quantization   int8 values and their scales
    distribute    which rank has which experts         expert_group   the process group and its AlltoAll
"""

from moe_graph.family import (
    compute_expert_tokens,
    dequant_swiglu_quant,
    distribute_combine_v2,
    distribute_dispatch_v2,
    dynamic_quant,
    finalize_routing,
    gating_top_k,
    gating_top_k_softmax,
    grouped_matmul,
    init_routing_v2,
    swiglu,
    token_permute,
    token_unpermute,
)
from moe_graph.family.declaration import Operator

OPERATORS: tuple[Operator, ...] = (
    gating_top_k.OPERATOR,
    gating_top_k_softmax.OPERATOR,
    init_routing_v2.OPERATOR,
    token_permute.OPERATOR,
    compute_expert_tokens.OPERATOR,
    distribute_dispatch_v2.OPERATOR,
    grouped_matmul.OPERATOR,
    grouped_matmul.LIST_OPERATOR,
    swiglu.OPERATOR,
    swiglu.BACKWARD_OPERATOR,
    dynamic_quant.OPERATOR,
    dequant_swiglu_quant.OPERATOR,
    distribute_combine_v2.OPERATOR,
    finalize_routing.OPERATOR,
    token_unpermute.OPERATOR,
)
"""The operators that `moe_graph.register` registers beside `npu_moe_re_routing`, in the order of the layer."""

__all__ = ["OPERATORS", "Operator"]
