"""`npu_moe_gating_top_k(x, k, ...)`: the k experts of each token, limited to its best groups of experts, and their weights.

    x [N, E]             logits of E experts        bias [E]   added to the normalized scores for the choice, not for the weights
    y [N, k]             weights, dtype of x        expert_idx [N, k]   int32, by falling score
    norm_out [N, E]      float32, the normalized scores if out_flag, else zeros (the device leaves it undefined)

    norm = softmax(x) (norm_type 0) or sigmoid(x) (1)
    ranked = norm + bias; the E experts form group_count groups of neighbours; a group's score is its largest `ranked` (group_select_mode
    0) or the sum of its two largest (1); outside of the k_group best groups no expert is chosen
    expert_idx = the k largest of `ranked`; y = norm there, divided by (their sum + eps) with norm_type 1, times routed_scaling_factor

    hash mode   input_ids [N] and tid2eid [ids, k], int32 or int64: expert_idx = tid2eid[input_ids], the scores choose nothing

npu_moe_gating_top_k_backward(x_norm, grad_y, expertIdx, ...) gives the gradient of x from norm_out [N, E] float32, that of y [N, k] and the
choice; it has grad_y's dtype.

Computed in float32. Of equal scores the smaller number (of the expert, of the group) comes first; the documents do not say which.

Sources: the operator's page in the torch_npu documentation, the document of aclnnMoeGatingTopK, torch_npu's fake implementation;
op-plugin's test of the gradient. The page has renorm 0 alone, and does not say what bias and groups do in the hash mode: refused there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import declare, of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed
from moe_graph.operators.quantization.int8 import check_values

_check, _check_backward = Checks("npu_moe_gating_top_k"), Checks("npu_moe_gating_top_k_backward")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SOFTMAX, SIGMOID = 0, 1
MAXIMUM, TOP_2_SUM = 0, 1
MAX_EXPERTS = 2048


def _check_arguments(
    x: Tensor,
    k: int,
    bias: Tensor | None,
    input_ids: Tensor | None,
    tid2eid: Tensor | None,
    k_group: int,
    group_count: int,
    group_select_mode: int,
    renorm: int,
    norm_type: int,
) -> None:
    _check.dtype("x", x, DTYPES)
    _check.rank("x", x, (2,), "[N, E]")
    if input_ids is not None or tid2eid is not None:
        _check_hash(x, k, bias, input_ids, tid2eid, group_count)
    _check.value("norm_type", norm_type, (SOFTMAX, SIGMOID))
    _check.value("renorm", renorm, (0,))
    _check.value("group_select_mode", group_select_mode, (MAXIMUM, TOP_2_SUM))
    experts = x.shape[1]
    _check.size(1 <= experts, "x", "of shape [N, E] with E >= 1", x)
    _check.size(experts <= MAX_EXPERTS, "x", f"of at most {MAX_EXPERTS} experts", x)
    if group_count < 1:
        _check.refuse("group_count", ">= 1", group_count)
    _check.size(experts % group_count == 0, "x", f"of a number of experts that group_count = {group_count} divides", x)
    if group_count > 1:
        _check.size(experts // group_count > 2, "x", f"of more than 2 experts in each of {group_count} groups", x)
    _check.value("k_group", k_group, range(1, group_count + 1))
    if k < 1:
        _check.refuse("k", ">= 1", k)
    _check.size(k <= experts // group_count * k_group, "k", f"at most the experts of {k_group} groups, k = {k}", x)
    if bias is not None:
        _check.dtype("bias", bias, (x.dtype,))
        _check.rank("bias", bias, (1,), "[E]")
        _check.size(bias.shape[0] == experts, "bias", f"of shape [E], E = {experts}", bias)
        _check.device("bias", bias, "x", x)


def _check_hash(
    x: Tensor, k: int, bias: Tensor | None, input_ids: Tensor | None, tid2eid: Tensor | None, group_count: int
) -> None:
    if input_ids is None or tid2eid is None:
        _check.refuse("input_ids and tid2eid", "both given, or neither", "one of them")
    _check.absent("bias", bias, "the hash mode's document has none")
    _check.value("group_count", group_count, (1,))
    for name, tensor, rank, shape in (("input_ids", input_ids, 1, "[N]"), ("tid2eid", tid2eid, 2, "[ids, k]")):
        _check.dtype(name, tensor, (torch.int32, torch.int64))
        _check.rank(name, tensor, (rank,), shape)
        _check.device(name, tensor, "x", x)
    _check.size(input_ids.shape[0] == x.shape[0], "input_ids", "of x's first size", input_ids)
    _check.size(tid2eid.shape[1] == k, "tid2eid", f"of last size k = {k}", tid2eid)


def fake(
    x: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    input_ids: Tensor | None = None,
    tid2eid: Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = MAXIMUM,
    renorm: int = 0,
    norm_type: int = SOFTMAX,
    out_flag: bool = False,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes and dtypes of y, expert_idx, norm_out."""
    _check_arguments(x, k, bias, input_ids, tid2eid, k_group, group_count, group_select_mode, renorm, norm_type)
    return (
        x.new_empty((x.shape[0], k)),
        x.new_empty((x.shape[0], k), dtype=torch.int32),
        x.new_empty(x.shape, dtype=torch.float32),
    )


def gating_top_k(
    x: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    input_ids: Tensor | None = None,
    tid2eid: Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = MAXIMUM,
    renorm: int = 0,
    norm_type: int = SOFTMAX,
    out_flag: bool = False,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, expert_idx and norm_out, as the module's document says. Raises ValueError on what it excludes."""
    _check_arguments(x, k, bias, input_ids, tid2eid, k_group, group_count, group_select_mode, renorm, norm_type)
    norm = x.float().softmax(-1) if norm_type == SOFTMAX else x.float().sigmoid()
    if input_ids is not None and tid2eid is not None:
        expert_idx = _by_hash(input_ids, tid2eid, x.shape[1])
    else:
        ranked = norm.detach() if bias is None else norm.detach() + bias.detach().float()
        if k_group < group_count:
            ranked = _within_best_groups(ranked, k_group, group_count, group_select_mode)
        expert_idx = largest(ranked, k)
    y = norm.gather(-1, expert_idx)
    if norm_type == SIGMOID:
        y = y / (y.sum(-1, keepdim=True) + eps)
    norm_out = norm if out_flag else torch.zeros_like(norm)
    return (y * routed_scaling_factor).to(x.dtype), expert_idx.to(torch.int32), norm_out


def _by_hash(input_ids: Tensor, tid2eid: Tensor, experts: int) -> Tensor:
    """The experts [N, k] of the ids."""
    ids = input_ids.long()
    check_values(
        _check, "input_ids", input_ids, (ids >= 0) & (ids < tid2eid.shape[0]), f"from 0 to {tid2eid.shape[0] - 1}"
    )
    chosen = tid2eid[ids].long()
    check_values(_check, "tid2eid", chosen, (chosen >= 0) & (chosen < experts), f"from 0 to {experts - 1}")
    return chosen


def gating_top_k_backward(
    x_norm: Tensor,
    grad_y: Tensor,
    expert_idx: Tensor,
    *,
    renorm: int = 0,
    norm_type: int = SOFTMAX,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> Tensor:
    """The gradient of x [N, E]. Raises ValueError for another renorm than 0."""
    _check_backward.value("renorm", renorm, (0,))
    _check_backward.value("norm_type", norm_type, (SOFTMAX, SIGMOID))
    norm, chosen = x_norm.float(), expert_idx.long()
    grad = grad_y.float() * routed_scaling_factor
    if norm_type == SIGMOID:
        y = norm.gather(-1, chosen)
        total = y.sum(-1, keepdim=True) + eps
        grad = grad / total - (grad * y).sum(-1, keepdim=True) / total.square()
    of_norm = torch.zeros_like(norm).scatter_add(-1, chosen, grad)
    if norm_type == SIGMOID:
        return (of_norm * norm * (1 - norm)).to(grad_y.dtype)
    return (norm * (of_norm - (of_norm * norm).sum(-1, keepdim=True))).to(grad_y.dtype)


def _within_best_groups(ranked: Tensor, k_group: int, group_count: int, mode: int) -> Tensor:
    """`ranked` [N, E], with -inf in all but the `k_group` best groups."""
    grouped = ranked.unflatten(-1, (group_count, -1))  # [N, groups, E / groups]
    scores = grouped.amax(-1) if mode == MAXIMUM else grouped.topk(2, dim=-1).values.sum(-1)
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, largest(scores, k_group), True)
    return grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(-2)


def largest(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest, the smaller index first among equals. [N, M] -> [N, count]"""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count].contiguous()


OPERATOR = declare(
    "npu_moe_gating_top_k(Tensor x, int k, *, Tensor? bias=None, Tensor? input_ids=None, Tensor? tid2eid=None, int k_group=1, "
    "int group_count=1, int group_select_mode=0, int renorm=0, int norm_type=0, bool out_flag=False, "
    "float routed_scaling_factor=1., float eps=9.9999999999999995e-21) -> (Tensor, Tensor, Tensor)",
    fake=fake,
    fallback=gating_top_k,
    differentiable=True,
    ge=[GeKernel("MoeGatingTopK", renamed(gating_top_k))],
)
BACKWARD_OPERATOR = of_torch_npu("npu_moe_gating_top_k_backward", gating_top_k_backward)
