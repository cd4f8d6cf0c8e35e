"""`npu_moe_distribute_combine_v2(expand_x, expert_ids, ...)`: the experts' results back to their tokens' ranks, weighted and summed.

    expand_x [A, H], rows in the order of npu_moe_distribute_dispatch_v2's; ep_send_counts are its ep_recv_counts
    y[token] = sum over k of expert_scales[token, k] * result of its expert k + the shared experts' results + shared_expert_x[token]
    zero experts give 0, copy experts ori_x[token], constant expert j alpha_1[j] * ori_x[token] + alpha_2[j] * const_expert_v[j]

ori_x [BS, H], const_expert_v [C, H]; const_expert_alpha_1 and _2 are [C], one number for each expert, in the kernel and its document,
and [C, H] on the operator's page: both are taken.

comm_quant_mode 2: the experts' results travel as int8 with a scale for each 8 of them, max |v| / 127, which is rounded to their dtype, as
is the dequantized result (the kernel of Atlas A3).

Symbols and sources: `moe_graph.operators.communication.distribute`. The sum is float32, rounded once. Tokens outside x_active_mask get
shared_expert_x or 0; a device does not write them. The places of the rows are found from expert_ids and x_active_mask, which must be
those of the dispatch; assist_info_for_combine is not needed. performance_info as in the dispatch. Not served, as the operator's page
excludes it: tensor parallelism.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.communication import distribute, expert_group
from moe_graph.operators.communication.distribute import Layout
from moe_graph.operators.declaration import declare
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.quantization.int8 import dynamic_int8

_check = Checks("npu_moe_distribute_combine_v2")


class Options(NamedTuple):
    """The keyword arguments, with the schema's defaults."""

    tp_send_counts: Tensor | None = None
    x_active_mask: Tensor | None = None
    expand_scales: Tensor | None = None
    shared_expert_x: Tensor | None = None
    elastic_info: Tensor | None = None
    ori_x: Tensor | None = None
    const_expert_alpha_1: Tensor | None = None
    const_expert_alpha_2: Tensor | None = None
    const_expert_v: Tensor | None = None
    performance_info: Tensor | None = None
    group_tp: str = ""
    tp_world_size: int = 0
    tp_rank_id: int = 0
    expert_shard_type: int = 0
    shared_expert_num: int = 1
    shared_expert_rank_num: int = 0
    global_bs: int = 0
    comm_quant_mode: int = 0
    comm_alg: str = ""
    zero_expert_num: int = 0
    copy_expert_num: int = 0
    const_expert_num: int = 0

    @property
    def special(self) -> tuple[int, int, int]:
        """The numbers of zero, copy and constant experts."""
        return self.zero_expert_num, self.copy_expert_num, self.const_expert_num


INT8 = 2
_QUANTIZED_TOGETHER = 8  # elements of a row that share a scale in comm_quant_mode 2: the floats in 32 bytes


def _check_arguments(
    check: Checks,
    expand_x: Tensor,
    expert_ids: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    group_ep: str,
    ranks: int,
    rank: int,
    experts: int,
    options: Options,
) -> Layout:
    check.rank("expand_x", expand_x, (2,), "[A, H]")
    check.dtype("expand_x", expand_x, distribute.FLOATS)
    layout = distribute.check_layout(
        check, ranks, rank, experts, options.shared_expert_num, options.shared_expert_rank_num, options.special
    )
    check.value("comm_quant_mode", options.comm_quant_mode, (0, INT8))
    distribute.check_common(
        check,
        expert_ids,
        options.x_active_mask,
        layout,
        group_ep=group_ep,
        tp_world_size=options.tp_world_size,
        expert_shard_type=options.expert_shard_type,
        global_bs=options.global_bs,
        comm_alg=options.comm_alg,
        elastic_info=options.elastic_info,
        performance_info=options.performance_info,
    )
    _check_special(check, expand_x, expert_ids, options)
    for name, tensor in (
        ("expert_ids", expert_ids),
        ("ep_send_counts", ep_send_counts),
        ("expert_scales", expert_scales),
    ):
        check.device(name, tensor, "expand_x", expand_x)
    counts = ranks * layout.slots_of(rank)
    check.dtype("ep_send_counts", ep_send_counts, (torch.int32,))
    check.rank("ep_send_counts", ep_send_counts, (1,), f"[{counts}] or longer")
    check.size(ep_send_counts.shape[0] >= counts, "ep_send_counts", f"of shape [{counts}] or longer", ep_send_counts)
    check.dtype("expert_scales", expert_scales, (torch.float32,))
    check.rank("expert_scales", expert_scales, (2,), "[BS, K]")
    for size, expected in zip(expert_scales.shape, expert_ids.shape):
        check.size(size == expected, "expert_scales", f"of shape {tuple(expert_ids.shape)}", expert_scales)
    shared = options.shared_expert_x
    if shared is not None:
        if layout.shared_ranks:
            check.refuse("shared_expert_x", "None where ranks have shared experts", f"shape {tuple(shared.shape)}")
        check.dtype("shared_expert_x", shared, (expand_x.dtype,))
        check.device("shared_expert_x", shared, "expand_x", expand_x)
        shape = f"[BS, H] = [{expert_ids.shape[0]}, {expand_x.shape[1]}], BS in one or two sizes"
        check.rank("shared_expert_x", shared, (2, 3), shape)
        check.size(shared.shape[-1] == expand_x.shape[1], "shared_expert_x", f"of shape {shape}", shared)
        check.size(shared.shape[:-1].numel() == expert_ids.shape[0], "shared_expert_x", f"of shape {shape}", shared)
    return layout


def _check_special(check: Checks, expand_x: Tensor, expert_ids: Tensor, options: Options) -> None:
    """ori_x and the constants of the constant experts."""
    tokens, hidden, constants = expert_ids.shape[0], expand_x.shape[1], options.const_expert_num
    shapes: dict[str, tuple] = {"ori_x": ((tokens, hidden),)}
    if constants:
        alphas = ((constants,), (constants, 1), (constants, hidden))
        shapes |= {
            "const_expert_alpha_1": alphas,
            "const_expert_alpha_2": alphas,
            "const_expert_v": ((constants, hidden),),
        }
    if options.copy_expert_num or constants:
        for name in shapes:
            if getattr(options, name) is None:
                needs = "const_expert_num" if constants else "copy_expert_num"
                check.refuse(name, f"given with {needs} {getattr(options, needs)}", None)
    for name, allowed in shapes.items():
        tensor = getattr(options, name)
        if tensor is None:
            continue
        check.dtype(name, tensor, (expand_x.dtype,))
        check.device(name, tensor, "expand_x", expand_x)
        text = " or ".join(str(list(shape)) for shape in allowed)
        check.rank(name, tensor, {len(shape) for shape in allowed}, text)
        check.size(tensor.shape[0] == allowed[0][0], name, f"of shape {text}", tensor)
        if tensor.dim() == 2 and not (tensor.shape[1] == 1 and len(allowed) > 1):
            check.size(tensor.shape[1] == hidden, name, f"of shape {text}", tensor)


def fake(
    expand_x: Tensor,
    expert_ids: Tensor,
    assist_info_for_combine: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    **keywords: Any,
) -> Tensor:
    """[BS, H] of expand_x's dtype; the group is not looked for."""
    layout = (group_ep, ep_world_size, ep_rank_id, moe_expert_num)
    _check_arguments(_check, expand_x, expert_ids, ep_send_counts, expert_scales, *layout, Options(**keywords))
    return expand_x.new_empty((expert_ids.shape[0], expand_x.shape[1]))


def combine(
    expand_x: Tensor,
    expert_ids: Tensor,
    assist_info_for_combine: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    **keywords: Any,
) -> Tensor:
    """y [BS, H], as the module's document says; all ranks of the group must call it.

    Raises ValueError on arguments that the documents exclude or that are not served, and what torch.distributed raises.
    """
    named = (group_ep, ep_world_size, ep_rank_id, moe_expert_num)
    given = (expand_x, expert_ids, ep_send_counts, expert_scales)
    return combined(_check, *given, *named, Options(**keywords)).to(expand_x.dtype)


def combined(
    check: Checks,
    expand_x: Tensor,
    expert_ids: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    group_ep: str,
    ranks: int,
    rank: int,
    experts: int,
    options: Options,
) -> Tensor:
    """y before it is rounded, float32, of the operator whose checks are given, which may be another form of this one."""
    named = (group_ep, ranks, rank, experts)
    whole = _check_arguments(check, expand_x, expert_ids, ep_send_counts, expert_scales, *named, options)
    layout = distribute.scaled_down(check, whole, options.elastic_info)
    distribute.check_routing_values(check, expert_ids, options.x_active_mask, layout)
    group = expert_group.find(check, "group_ep", group_ep, ranks, rank)
    peers = expert_group.Peers(group, layout.members, options.performance_info)
    local = layout.slots_of(layout.rank)

    ends = ep_send_counts[: layout.ranks * local]
    counts = ends.diff(prepend=ends.new_zeros(1)).view(local, layout.ranks)  # [local expert, rank]
    send = counts.sum(0).tolist()
    if min(counts.flatten().tolist()) < 0 or sum(send) > len(expand_x):
        check.refuse("ep_send_counts", f"the dispatch's ep_recv_counts, up to {len(expand_x)} rows", ends.tolist())
    route = layout.route(expert_ids, options.x_active_mask)
    receive = [int(part.sum()) for part in route.sizes.cpu().split(layout.slots_by_rank)]

    back = torch.ops.npu.npu_moe_re_routing(expand_x[: sum(send)], counts)[0]  # transposed counts: the way back
    if options.comm_quant_mode == INT8:
        back = _through_int8(back)
    rows = peers.exchange(back, send, receive)
    return _weighted_sum(rows, route.places[: sum(receive)], expert_ids, expert_scales, layout, options)


def _through_int8(rows: Tensor) -> Tensor:
    """The rows as they arrive after int8 communication."""
    hidden = rows.shape[1]
    parts = torch.nn.functional.pad(rows.float(), (0, -hidden % _QUANTIZED_TOGETHER)).unflatten(
        1, (-1, _QUANTIZED_TOGETHER)
    )
    values, scales = dynamic_int8(parts)
    return (values.float() * scales.to(rows.dtype).float()).flatten(1)[:, :hidden].to(rows.dtype)


def _weighted_sum(
    rows: Tensor, places: Tensor, expert_ids: Tensor, expert_scales: Tensor, layout: Layout, options: Options
) -> Tensor:
    tokens, columns, hidden = len(expert_scales), expert_scales.shape[1] + layout.shared, rows.shape[1]
    results = rows.new_zeros((tokens * columns, hidden)).index_copy(0, places, rows).view(tokens, columns, hidden)
    weights = torch.nn.functional.pad(expert_scales, (0, layout.shared), value=1.0)
    y = torch.bmm(weights.unsqueeze(1), results.float()).squeeze(1)
    if options.copy_expert_num or options.const_expert_num:
        y = y + _of_special_experts(expert_ids, expert_scales, layout, options)
    if options.shared_expert_x is not None:
        y = y + options.shared_expert_x.reshape(tokens, hidden).float()
    return y


def _of_special_experts(expert_ids: Tensor, expert_scales: Tensor, layout: Layout, options: Options) -> Tensor:
    """What copy and constant experts add, float32 [BS, H]."""
    assert options.ori_x is not None  # checked: it is given with these experts
    x, mask = options.ori_x.float(), options.x_active_mask
    number = expert_ids.long() - layout.experts - options.zero_expert_num - options.copy_expert_num
    weights = expert_scales if mask is None else expert_scales * distribute.mask_of_rows(mask, expert_ids)
    copied = (number >= -options.copy_expert_num) & (number < 0)
    y = x * (weights * copied).sum(1, keepdim=True)
    if options.const_expert_num:
        alpha_1, alpha_2, v = (
            tensor.float().reshape(options.const_expert_num, -1)[number.clamp_min(0)]  # [BS, K, 1 or H]
            for tensor in (options.const_expert_alpha_1, options.const_expert_alpha_2, options.const_expert_v)
            if tensor is not None
        )
        results = alpha_1 * x.unsqueeze(1) + alpha_2 * v
        y = y + torch.bmm((weights * (number >= 0)).unsqueeze(1), results.expand(v.shape)).squeeze(1)
    return y


def _ge_moe_distribute_combine_v2(
    expand_x: Tensor,
    expert_ids: Tensor,
    assist_info_for_combine: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    tp_send_counts: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    activation_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    group_list: Tensor | None = None,
    expand_scales: Tensor | None = None,
    shared_expert_x: Tensor | None = None,
    elastic_info: Tensor | None = None,
    ori_x: Tensor | None = None,
    const_expert_alpha_1: Tensor | None = None,
    const_expert_alpha_2: Tensor | None = None,
    const_expert_v: Tensor | None = None,
    performance_info: Tensor | None = None,
    *,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    global_bs: int = 0,
    out_dtype: int = 0,
    comm_quant_mode: int = 0,
    group_list_type: int = 0,
    comm_alg: str = "",
    zero_expert_num: int = 0,
    copy_expert_num: int = 0,
    const_expert_num: int = 0,
) -> Tensor:
    """GE MoeDistributeCombineV2: npu_moe_distribute_combine_v2 over the group that group_ep names, in this process."""
    distribute.check_reserved(_check, activation_scale, weight_scale, group_list, out_dtype, group_list_type)
    return combine(
        expand_x,
        expert_ids,
        assist_info_for_combine,
        ep_send_counts,
        expert_scales,
        group_ep,
        ep_world_size,
        ep_rank_id,
        moe_expert_num,
        tp_send_counts=tp_send_counts,
        x_active_mask=x_active_mask,
        expand_scales=expand_scales,
        shared_expert_x=shared_expert_x,
        elastic_info=elastic_info,
        ori_x=ori_x,
        const_expert_alpha_1=const_expert_alpha_1,
        const_expert_alpha_2=const_expert_alpha_2,
        const_expert_v=const_expert_v,
        performance_info=performance_info,
        group_tp=group_tp,
        tp_world_size=tp_world_size,
        tp_rank_id=tp_rank_id,
        expert_shard_type=expert_shard_type,
        shared_expert_num=shared_expert_num,
        shared_expert_rank_num=shared_expert_rank_num,
        global_bs=global_bs,
        comm_quant_mode=comm_quant_mode,
        comm_alg=comm_alg,
        zero_expert_num=zero_expert_num,
        copy_expert_num=copy_expert_num,
        const_expert_num=const_expert_num,
    )


OPERATOR = declare(
    "npu_moe_distribute_combine_v2(Tensor expand_x, Tensor expert_ids, Tensor assist_info_for_combine, Tensor ep_send_counts, "
    "Tensor expert_scales, str group_ep, int ep_world_size, int ep_rank_id, int moe_expert_num, *, "
    "Tensor? tp_send_counts=None, Tensor? x_active_mask=None, Tensor? expand_scales=None, Tensor? shared_expert_x=None, "
    "Tensor? elastic_info=None, Tensor? ori_x=None, Tensor? const_expert_alpha_1=None, Tensor? const_expert_alpha_2=None, "
    "Tensor? const_expert_v=None, Tensor? performance_info=None, str group_tp='', int tp_world_size=0, int tp_rank_id=0, "
    "int expert_shard_type=0, int shared_expert_num=1, int shared_expert_rank_num=0, int global_bs=0, int comm_quant_mode=0, "
    "str comm_alg='', int zero_expert_num=0, int copy_expert_num=0, int const_expert_num=0) -> Tensor",
    fake=fake,
    fallback=combine,
    ge=[GeKernel("MoeDistributeCombineV2", _ge_moe_distribute_combine_v2)],
)
