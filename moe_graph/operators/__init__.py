"""torch_npu's operators, a module each, in rooms by what an engineer looks for.

    moe            the gate, routing and its way back        matmul         grouped and quantised products
    communication  dispatch, combine, compute with AlltoAll  attention      attention over whole and paged caches
    activation     swiglu, gelu and their kind               normalization  RMS and layer norms, fused with what follows
    position       rotary embeddings                         cache          writes to and reads from key/value caches
    quantization   to and from int8 and smaller              sampling       choice of the next token
    loss           cross entropy, over ranks, too            tensor         casts, formats, status
    declaration, ge, checks, dtypes, gradients: what modules share

A module holds the operator's document, the checks of its arguments, its reference on CPU tensors, the GE types it lowers to, and its
declaration. `OPERATORS` are those of the MoE layer, which work without torch_npu; `every` adds those that torch_npu alone defines.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping

from moe_graph.operators.activation import swiglu
from moe_graph.operators.communication import distribute_combine_v2, distribute_dispatch_v2
from moe_graph.operators.declaration import Operator
from moe_graph.operators.matmul import grouped_matmul
from moe_graph.operators.moe import (
    compute_expert_tokens,
    finalize_routing,
    gating_top_k,
    gating_top_k_softmax,
    init_routing_v2,
    token_permute,
    token_unpermute,
)
from moe_graph.operators.quantization import dequant_swiglu_quant, dynamic_quant

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

__all__ = ["OPERATORS", "Operator", "every"]


@functools.cache
def every() -> Mapping[str, Operator]:
    """Every operator that a module of the rooms declares, by its qualified name ("npu::npu_rms_norm"). Imports all modules at first use.

    Raises ValueError if two modules declare one operator.
    """
    found: dict[str, Operator] = {}
    for module in pkgutil.walk_packages(__path__, __name__ + "."):
        for value in vars(importlib.import_module(module.name)).values():
            if not isinstance(value, Operator):
                continue
            if found.setdefault(value.qualname, value) is not value:
                raise ValueError(f"{value.qualname} is declared twice, the second time in {module.name}")
    return found
