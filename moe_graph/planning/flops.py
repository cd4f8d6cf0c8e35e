"""Operations of products and attention, from the shapes of their operands: a multiplication and an addition counted as two.

aten's are those of torch.utils.flop_counter. torch_npu's own stand here, each by the formula of its document. Where the work depends on
values (how many rows a group has, how long a request is), it is that for operands that are filled: an upper bound, which is said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from moe_graph.planning import traffic

Given = dict[str, Any]
_formulas: dict[str, Callable[[Given, list[Tensor]], int]] = {}
_by_values: set[str] = set()


def count(operator: torch._ops.OpOverload, args: Any, kwargs: Any, result: Any) -> int:
    """The operations of one call; 0 for what is neither a product nor attention."""
    formula = flop_registry.get(operator._overloadpacket)
    if formula is not None:
        return int(formula(*args, **kwargs, out_val=result))
    own = _formulas.get(operator._schema.name.removesuffix("_functional"))
    if own is None:
        return 0
    return int(own(named(operator, args, kwargs), traffic.tensors(result)))


def is_upper_bound(operator: torch._ops.OpOverload) -> bool:
    """Does the work depend on values, so that the count is that for filled operands?"""
    return operator._schema.name in _by_values


def named(operator: torch._ops.OpOverload, args: Any, kwargs: Any) -> Given:
    """All arguments of a call by name, defaults included."""
    schema = operator._schema.arguments
    given = {argument.name: argument.default_value for argument in schema}
    given.update(zip((argument.name for argument in schema), args))
    given.update(kwargs)
    return given


def _formula(names: str, by_values: bool = False) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        for name in names.split():
            _formulas[name if "::" in name else f"npu::{name}"] = function
            if by_values:
                _by_values.add(f"npu::{name}")
        return function

    return register


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


@_formula(
    "aten::matmul aten::linear npu_quant_matmul npu_weight_quant_batchmatmul npu_linear npu_bmmV2 npu_quant_matmul_dequant"
)
def _product(given: Given, results: list[Tensor]) -> int:
    """[..., M, K] by [..., K, N]."""
    return 2 * results[0].numel() * next(iter(given.values())).shape[-1]


@_formula("npu_transpose_batchmatmul npu_all_gather_base_mm npu_mm_reduce_scatter_base npu_mm_all_reduce_base")
def _product_and_more(given: Given, results: list[Tensor]) -> int:
    """The same with rows in another order or on other ranks: K is the second operand's last dimension but one."""
    first, second = list(given.values())[:2]
    return 2 * first.numel() * second.shape[-1]


@_formula("npu_grouped_matmul npu_grouped_matmul_swiglu_quant npu_grouped_matmul_swiglu_quant_v2", by_values=True)
@_formula("npu_grouped_matmul_finalize_routing npu_quant_grouped_matmul_dequant", by_values=True)
def _grouped(given: Given, results: list[Tensor]) -> int:
    """Each row of x by the weight [K, N] of its group."""
    rows = _list(given["x"])
    weights = _list(given["weight"] if "weight" in given else given["quantized_weight"])
    if len(rows) == len(weights) and weights[0].dim() == 2:
        return sum(2 * x.shape[:-1].numel() * w.numel() for x, w in zip(rows, weights))
    return sum(2 * x.shape[:-1].numel() * x.shape[-1] * _columns(weights[0], x.shape[-1]) for x in rows)


def _columns(weight: Tensor, length: int) -> int:
    """N of a weight [E, K, N], or packed in another shape."""
    experts = weight.shape[0] if weight.dim() > 2 else 1
    return weight.numel() // max(experts * length, 1)


@_formula("npu_mla_prolog npu_mla_prolog_v2 npu_mla_prolog_v3")
def _mla_prolog(given: Given, results: list[Tensor]) -> int:
    """Each token by the four weights."""
    tokens = given["token_x"].shape[:-1].numel()
    names = ("weight_dq", "weight_uq_qr", "weight_uk", "weight_dkv_kr")
    return 2 * tokens * sum(given[name].numel() for name in names)


@_formula("npu_ffn")
def _ffn(given: Given, results: list[Tensor]) -> int:
    rows, first, second = given["x"].shape[:-1].numel(), given["weight1"], given["weight2"]
    return 2 * rows * sum(weight.shape[-2:].numel() for weight in (first, second))


@_formula("npu_fused_infer_attention_score npu_fused_infer_attention_score_v2", by_values=True)
@_formula("npu_incre_flash_attention npu_prompt_flash_attention npu_fusion_attention", by_values=True)
def _attention(given: Given, results: list[Tensor]) -> int:
    """Queries by keys, scores by values, without a mask: lengths as they are given in numbers, else as much as keys and cache hold."""
    scores = given["query"].numel()
    if isinstance(given.get("query_rope"), Tensor):
        scores += given["query_rope"].numel()
    return int(2 * (scores + results[0].numel()) * _keys(given))


def _keys(given: Given) -> float:
    """How many keys a query meets, on average over the requests."""
    names = ("actual_seq_lengths_kv", "actual_seq_kvlen", "actual_seq_lengths")
    lengths = next((given[name] for name in names if given.get(name) is not None), None)
    layout = str(given.get("input_layout", "BSH")).partition("_")[0]
    key = _list(given["key"])[0]
    numbers = [int(length) for length in lengths] if isinstance(lengths, (list, tuple)) else []
    if numbers and layout in ("TND", "NTD"):
        numbers = [later - earlier for earlier, later in zip([0, *numbers], numbers)]
    if numbers:
        return sum(numbers) / len(numbers)
    if isinstance(given.get("block_table"), Tensor):
        return float(given["block_table"].shape[-1] * given["block_size"])
    return float(key.shape[{"BNSD": 2, "SBH": 0, "TND": 0, "NTD": 1}.get(layout, 1)])
