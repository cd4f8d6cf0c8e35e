"""`npu_moe_distribute_combine_v2(expand_x, expert_ids, ...)`: the experts' results back to their tokens' ranks, weighted and summed.

    expand_x [A, H], rows in the order of npu_moe_distribute_dispatch_v2's; ep_send_counts are its ep_recv_counts
    y[token] = sum over k of expert_scales[token, k] * result of its expert k + the shared experts' results + shared_expert_x[token]

Symbols and sources: `moe_graph.operators.communication.distribute`. The sum is float32, rounded once. Tokens outside x_active_mask get
shared_expert_x or 0; a device does not write them. The fallback is eager only. It finds the places of the rows from expert_ids and
x_active_mask, which must be those of the dispatch, and so needs no assist_info_for_combine. Not served: tensor parallelism, elastic
groups, zero, copy and constant experts, int8 communication.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.communication import distribute, expert_group
from moe_graph.operators.communication.distribute import Layout
from moe_graph.operators.declaration import declare

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


_UNSERVED = (
    "elastic_info",
    "ori_x",
    "const_expert_alpha_1",
    "const_expert_alpha_2",
    "const_expert_v",
    "performance_info",
    "comm_quant_mode",
    "zero_expert_num",
    "copy_expert_num",
    "const_expert_num",
)


def _check_arguments(
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
    _check.rank("expand_x", expand_x, (2,), "[A, H]")
    _check.dtype("expand_x", expand_x, distribute.FLOATS)
    layout = distribute.check_layout(
        _check, ranks, rank, experts, options.shared_expert_num, options.shared_expert_rank_num
    )
    distribute.check_unserved(_check, {name: getattr(options, name) for name in _UNSERVED})
    distribute.check_common(
        _check,
        expert_ids,
        options.x_active_mask,
        layout,
        group_ep=group_ep,
        tp_world_size=options.tp_world_size,
        expert_shard_type=options.expert_shard_type,
        global_bs=options.global_bs,
        comm_alg=options.comm_alg,
    )
    for name, tensor in (
        ("expert_ids", expert_ids),
        ("ep_send_counts", ep_send_counts),
        ("expert_scales", expert_scales),
    ):
        _check.device(name, tensor, "expand_x", expand_x)
    counts = ranks * layout.slots_of(rank)
    _check.dtype("ep_send_counts", ep_send_counts, (torch.int32,))
    _check.rank("ep_send_counts", ep_send_counts, (1,), f"[{counts}] or longer")
    _check.size(ep_send_counts.shape[0] >= counts, "ep_send_counts", f"of shape [{counts}] or longer", ep_send_counts)
    _check.dtype("expert_scales", expert_scales, (torch.float32,))
    _check.rank("expert_scales", expert_scales, (2,), "[BS, K]")
    for size, expected in zip(expert_scales.shape, expert_ids.shape):
        _check.size(size == expected, "expert_scales", f"of shape {tuple(expert_ids.shape)}", expert_scales)
    shared = options.shared_expert_x
    if shared is not None:
        if layout.shared_ranks:
            _check.refuse("shared_expert_x", "None where ranks have shared experts", f"shape {tuple(shared.shape)}")
        _check.dtype("shared_expert_x", shared, (expand_x.dtype,))
        _check.device("shared_expert_x", shared, "expand_x", expand_x)
        shape = f"[BS, H] = [{expert_ids.shape[0]}, {expand_x.shape[1]}], BS in one or two sizes"
        _check.rank("shared_expert_x", shared, (2, 3), shape)
        _check.size(shared.shape[-1] == expand_x.shape[1], "shared_expert_x", f"of shape {shape}", shared)
        _check.size(shared.shape[:-1].numel() == expert_ids.shape[0], "shared_expert_x", f"of shape {shape}", shared)
    return layout


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
    _check_arguments(expand_x, expert_ids, ep_send_counts, expert_scales, *layout, Options(**keywords))
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
    options, named = Options(**keywords), (group_ep, ep_world_size, ep_rank_id, moe_expert_num)
    layout = _check_arguments(expand_x, expert_ids, ep_send_counts, expert_scales, *named, options)
    distribute.check_routing_values(_check, expert_ids, options.x_active_mask, layout)
    group = expert_group.find(_check, "group_ep", group_ep, ep_world_size, ep_rank_id)
    local = layout.slots_of(ep_rank_id)

    ends = ep_send_counts[: ep_world_size * local]
    counts = ends.diff(prepend=ends.new_zeros(1)).view(local, ep_world_size)  # [local expert, rank]
    send = counts.sum(0).tolist()
    if min(counts.flatten().tolist()) < 0 or sum(send) > len(expand_x):
        _check.refuse("ep_send_counts", f"the dispatch's ep_recv_counts, up to {len(expand_x)} rows", ends.tolist())
    route = layout.route(expert_ids, options.x_active_mask)
    receive = [int(part.sum()) for part in route.sizes.cpu().split(layout.slots_by_rank)]

    back = torch.ops.npu.npu_moe_re_routing(expand_x[: sum(send)], counts)[0]  # transposed counts: the way back
    rows = expert_group.exchange(back, send, receive, group)
    return _weighted_sum(rows, route.places[: sum(receive)], expert_scales, layout, options)


def _weighted_sum(rows: Tensor, places: Tensor, expert_scales: Tensor, layout: Layout, options: Options) -> Tensor:
    tokens, columns, hidden = len(expert_scales), expert_scales.shape[1] + layout.shared, rows.shape[1]
    results = rows.new_zeros((tokens * columns, hidden)).index_copy(0, places, rows).view(tokens, columns, hidden)
    weights = torch.nn.functional.pad(expert_scales, (0, layout.shared), value=1.0)
    y = torch.bmm(weights.unsqueeze(1), results.float()).squeeze(1)
    if options.shared_expert_x is not None:
        y = y + options.shared_expert_x.reshape(tokens, hidden).float()
    return y.to(rows.dtype)


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
)
