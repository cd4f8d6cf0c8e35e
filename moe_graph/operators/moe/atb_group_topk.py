"""ATB's `npu_fused_add_topk_div(x, add_num, ...)`, DeepSeek's gate by sigmoid, and `_npu_group_topk(self, k, group_num, n)`.

    x [T, E] float16, bfloat16, float32: logits   add_num [E] like x: a bias that experts are chosen with
    score = sigmoid(x) + add_num; of group_num groups of neighbours the group_topk with the largest sums of their n largest scores stay,
    experts of the others count 0; the k largest are chosen, equal ones in the experts' order
    -> y [T, k] float32: sigmoid(x) of the chosen; is_norm: divided by their sum, times scale   indices [T, k] int32
    enable_expert_mapping   indices become mapping_table[expert, t % mapping_num[expert]] for token t; mapping_num [E], mapping_table [E, C]

_npu_group_topk writes 0 over the elements of the groups that do not stay; float16, bfloat16 or float32. Float32 inside, rounded once.

Sources: op-plugin's docstring (op_plugin/python/atb/_atb_api_docs.py), which calls the choice of the mapping random, and the golden
functions of its tests, which tell it. torchair has no converters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.moe.gating_top_k import largest

_check, _check_groups = Checks("npu_fused_add_topk_div"), Checks("_npu_group_topk")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_LARGEST_GROUP, _MANY, _GROUPS_OF_MANY = 32, 32, 8  # the docstring's limits


def fused_add_topk_div(
    x: Tensor,
    add_num: Tensor,
    *,
    mapping_num: Tensor | None = None,
    mapping_table: Tensor | None = None,
    activation_type: str | None = None,
    group_num: int = 1,
    group_topk: int = 1,
    n: int = 1,
    k: int = 1,
    is_norm: bool = True,
    scale: float = 1.0,
    enable_expert_mapping: bool = False,
) -> tuple[Tensor, Tensor]:
    """y and indices, as the module's document says. Raises ValueError on arguments that it excludes."""
    _check.dtype("x", x, _FLOATS)
    _check.dtype("add_num", add_num, (x.dtype,))
    _check.rank("x", x, (2,), "[T, E]")
    experts = x.shape[1]
    if tuple(add_num.shape) != (experts,):
        _check.refuse("add_num", f"of shape [{experts}]", f"shape {tuple(add_num.shape)}")
    _check.value("activation_type", activation_type, (None, "activation_sigmoid"))
    if experts >= _MANY:
        _check.value("group_num", group_num, (_GROUPS_OF_MANY,))
    if experts > group_num * _LARGEST_GROUP:
        _check.refuse("x", f"of at most {_LARGEST_GROUP} experts a group", experts)
    _check.value("k", k, range(1, experts + 1))
    weights = torch.sigmoid(x.float())
    scores = _of_groups(_check, "group_topk", weights + add_num.float(), group_topk, group_num, n)
    indices = largest(scores, k)
    y = weights.gather(1, indices)
    if is_norm:
        y = y / y.sum(-1, keepdim=True) * scale
    if enable_expert_mapping:
        indices = _mapped(indices, mapping_num, mapping_table, experts)
    return y, indices.to(torch.int32)


def fused_add_topk_div_out(
    x: Tensor, add_num: Tensor, *, y: Tensor, indices: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """The same, written to y and indices."""
    for target, made in zip((y, indices), fused_add_topk_div(x, add_num, **options)):
        target.copy_(made)
    return y, indices


def group_topk(x: Tensor, k: int = 0, group_num: int = 1, n: int = 1) -> None:
    """Writes to x. Raises ValueError on arguments that the module's document excludes."""
    _check_groups.dtype("self", x, _FLOATS)
    _check_groups.rank("self", x, (2,), "[T, E]")
    x.copy_(_of_groups(_check_groups, "k", x.float(), k, group_num, n))


def _of_groups(check: Checks, argument: str, scores: Tensor, kept: int, count: int, n: int) -> Tensor:
    """Scores, 0 in the groups that do not stay. `argument` names `kept`."""
    experts = scores.shape[1]
    if count < 1 or experts % count:
        check.refuse("group_num", f"a divisor of {experts} experts", count)
    check.value(argument, kept, range(1, count + 1))
    check.value("n", n, range(1, experts // count + 1))
    grouped = scores.view(len(scores), count, experts // count)
    best = largest(grouped.topk(n).values.sum(-1), kept)
    stays = torch.zeros(len(scores), count, dtype=torch.bool).scatter_(1, best, True)
    return grouped.masked_fill(~stays.unsqueeze(-1), 0).view(scores.shape)


def _mapped(indices: Tensor, counts: Tensor | None, table: Tensor | None, experts: int) -> Tensor:
    if counts is None or table is None:
        _check.refuse("mapping_num and mapping_table", "given with enable_expert_mapping", None)
    if tuple(counts.shape) != (experts,) or table.dim() != 2 or len(table) != experts:
        wanted = f"of shapes [{experts}] and [{experts}, C]"
        _check.refuse("mapping_num and mapping_table", wanted, f"shapes {tuple(counts.shape)} and {tuple(table.shape)}")
    if bool(((counts < 0) | (counts > table.shape[1])).any()):
        _check.refuse("mapping_num", f"from 0 to {table.shape[1]}", f"from {int(counts.min())} to {int(counts.max())}")
    tokens = torch.arange(len(indices)).unsqueeze(1)
    return table[indices, tokens % counts.long().clamp_min(1)[indices]]


OPERATOR = of_torch_npu("npu_fused_add_topk_div", fused_add_topk_div, namespace="atb")
OUT_OPERATOR = of_torch_npu("npu_fused_add_topk_div.out", fused_add_topk_div_out, namespace="atb")
GROUPS_OPERATOR = of_torch_npu("_npu_group_topk", group_topk, namespace="atb")
