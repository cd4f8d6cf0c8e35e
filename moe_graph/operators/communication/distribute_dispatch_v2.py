"""`npu_moe_distribute_dispatch_v2(x, expert_ids, ...)`: each token to the ranks of its experts, in expert order there. By AlltoAlls.

    x [BS, H], expert_ids [BS, K] ->
    expand_x [A, H]        tokens received: by expert, then source rank, then order of sending; int8 with quant_mode 2
    dynamic_scales [A]     their scales, max |x * scales[expert]| / 127, with quant_mode 2
    assist_info [A * 128]  source rank, token and place among its experts of each row, three numbers after another
    expert_token_nums      tokens of each local expert (type 1) or their running sum (type 0)
    ep_recv_counts         running sum of the rows by expert, then source rank
    tp_recv_counts         rows received, if tp_world_size is 1
    expand_scales [A]      expert_scales of each row, if given (Atlas A2)

Symbols and sources: `moe_graph.operators.communication.distribute`. The rows beyond the tokens received are 0 here and not written on a
device. The fallback is eager only; the sizes of the AlltoAlls are needed on the host, which synchronizes with a device once. Not
served: tensor parallelism, elastic groups, zero, copy and constant experts, quantizations other than 0 and 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.communication import distribute, expert_group
from moe_graph.operators.communication.distribute import Layout
from moe_graph.operators.declaration import declare
from moe_graph.operators.quantization.int8 import dynamic_int8

_check = Checks("npu_moe_distribute_dispatch_v2")
ASSIST_WIDTH = 128
_ASSISTED = 3  # source rank, token, place
_SERVER_RANKS = 8  # Atlas A2: its ep_recv_counts have room for the servers' own reductions
NO_QUANTIZATION, DYNAMIC = 0, 2


class Options(NamedTuple):
    """The keyword arguments, with the schema's defaults."""

    scales: Tensor | None = None
    x_active_mask: Tensor | None = None
    expert_scales: Tensor | None = None
    elastic_info: Tensor | None = None
    performance_info: Tensor | None = None
    group_tp: str = ""
    tp_world_size: int = 0
    tp_rank_id: int = 0
    expert_shard_type: int = 0
    shared_expert_num: int = 1
    shared_expert_rank_num: int = 0
    quant_mode: int = NO_QUANTIZATION
    global_bs: int = 0
    expert_token_nums_type: int = 1
    comm_alg: str = ""
    zero_expert_num: int = 0
    copy_expert_num: int = 0
    const_expert_num: int = 0
    y_dtype: int | None = None
    x_dtype: int | None = None
    scales_dtype: int | None = None


_UNSERVED = (
    "elastic_info",
    "performance_info",
    "zero_expert_num",
    "copy_expert_num",
    "const_expert_num",
    "y_dtype",
    "x_dtype",
    "scales_dtype",
)


def _check_arguments(
    x: Tensor, expert_ids: Tensor, group_ep: str, ranks: int, rank: int, experts: int, options: Options
) -> Layout:
    _check.rank("x", x, (2,), "[BS, H]")
    _check.dtype("x", x, distribute.FLOATS)
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
    _check.device("expert_ids", expert_ids, "x", x)
    _check.size(expert_ids.shape[0] == x.shape[0], "expert_ids", f"of BS = {x.shape[0]}, x's first size", expert_ids)
    if options.global_bs:
        largest = options.global_bs // layout.ranks
        _check.size(x.shape[0] <= largest, "x", f"of BS <= {largest}, global_bs of each rank", x)
    _check.value("quant_mode", options.quant_mode, (NO_QUANTIZATION, DYNAMIC))
    _check.value("expert_token_nums_type", options.expert_token_nums_type, (0, 1))
    if options.scales is not None:
        if options.quant_mode != DYNAMIC:
            _check.refuse("scales", "None with quant_mode 0", f"shape {tuple(options.scales.shape)}")
        shape = (layout.shared + layout.experts, x.shape[1])
        _check.dtype("scales", options.scales, (torch.float32,))
        _check.device("scales", options.scales, "x", x)
        _check.rank("scales", options.scales, (2,), "[experts, shared ones first, H]")
        for size, expected in zip(options.scales.shape, shape):
            _check.size(size == expected, "scales", f"of shape {tuple(shape)}", options.scales)
    if options.expert_scales is not None:
        _check.dtype("expert_scales", options.expert_scales, (torch.float32,))
        _check.device("expert_scales", options.expert_scales, "x", x)
        _check.rank("expert_scales", options.expert_scales, (2,), "[BS, K]")
        for size, expected in zip(options.expert_scales.shape, expert_ids.shape):
            _check.size(size == expected, "expert_scales", f"of shape {tuple(expert_ids.shape)}", options.expert_scales)
    return layout


def _empty_outputs(x: Tensor, expert_ids: Tensor, layout: Layout, options: Options, make: Any) -> tuple[Tensor, ...]:
    """The outputs, made by `make(shape, dtype=)`, of the shapes of torch_npu's fake implementation."""
    (tokens, hidden), k = x.shape, expert_ids.shape[1]
    rows, local = layout.max_rows(tokens, options.global_bs, k), layout.slots_of(layout.rank)
    assist = max(tokens * k, rows * ASSIST_WIDTH)
    counts = layout.ranks * local
    weights = 0 if options.expert_scales is None else rows
    if options.expert_scales is not None:
        counts += (options.global_bs or tokens * layout.ranks) * 2 * k * (layout.ranks // _SERVER_RANKS)
    return (
        make((rows, hidden), dtype=torch.int8 if options.quant_mode == DYNAMIC else x.dtype),
        make((rows,), dtype=torch.float32),
        make((assist,), dtype=torch.int32),
        make((local,), dtype=torch.int64),
        make((counts,), dtype=torch.int32),
        make((options.tp_world_size,), dtype=torch.int32),
        make((weights,), dtype=torch.float32),
    )


def fake(
    x: Tensor,
    expert_ids: Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    **keywords: Any,
) -> tuple[Tensor, ...]:
    """Outputs by the layout; the group is not looked for."""
    options = Options(**keywords)
    layout = _check_arguments(x, expert_ids, group_ep, ep_world_size, ep_rank_id, moe_expert_num, options)
    return _empty_outputs(x, expert_ids, layout, options, x.new_empty)


def dispatch(
    x: Tensor,
    expert_ids: Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    **keywords: Any,
) -> tuple[Tensor, ...]:
    """The outputs, as the module's document says; all ranks of the group must call it.

    Raises ValueError on arguments that the documents exclude or that are not served, and what torch.distributed raises.
    """
    options = Options(**keywords)
    layout = _check_arguments(x, expert_ids, group_ep, ep_world_size, ep_rank_id, moe_expert_num, options)
    distribute.check_routing_values(_check, expert_ids, options.x_active_mask, layout)
    group = expert_group.find(_check, "group_ep", group_ep, ep_world_size, ep_rank_id)
    local = layout.slots_of(ep_rank_id)

    route = layout.route(expert_ids, options.x_active_mask)
    received = expert_group.exchange(route.sizes, layout.slots_by_rank, [local] * ep_world_size, group)
    counts = received.view(ep_world_size, local)  # [source rank, local expert]
    send = [int(part.sum()) for part in route.sizes.cpu().split(layout.slots_by_rank)]
    receive = counts.sum(1).tolist()

    outputs = _empty_outputs(x, expert_ids, layout, options, x.new_zeros)
    expand_x, dynamic_scales, assist_info, expert_token_nums, ep_recv_counts, tp_recv_counts, expand_scales = outputs
    total = sum(receive)
    if total > len(expand_x):
        _check.refuse(
            "global_bs", "the largest BS of a rank times the ranks where ranks differ in BS", options.global_bs
        )

    place, columns = route.places[: sum(send)], expert_ids.shape[1] + layout.shared
    token, column = place // columns, place % columns
    rows, scales = _rows(x, token, column, expert_ids, layout, options)
    routed, routed_scales, index, _ = torch.ops.npu.npu_moe_re_routing(
        expert_group.exchange(rows, send, receive, group),
        counts,
        per_token_scales=None if scales is None else expert_group.exchange(scales, send, receive, group),
    )
    expand_x[:total] = routed
    if scales is not None:
        dynamic_scales[:total] = routed_scales
    assist = torch.stack((torch.full_like(token, ep_rank_id), token, column), 1).to(torch.int32)
    moved = expert_group.exchange(assist, send, receive, group).index_select(0, index)
    assist_info[: total * _ASSISTED] = moved.flatten()
    if options.expert_scales is not None:
        weight = torch.nn.functional.pad(options.expert_scales, (0, layout.shared), value=1.0).flatten()
        moved = expert_group.exchange(weight.index_select(0, place), send, receive, group)
        expand_scales[:total] = moved.index_select(0, index)
    of_expert = counts.sum(0)
    expert_token_nums.copy_(of_expert if options.expert_token_nums_type else of_expert.cumsum(0))
    ep_recv_counts[: ep_world_size * local] = counts.t().flatten().cumsum(0)
    tp_recv_counts.fill_(total)
    return outputs


def _rows(
    x: Tensor, token: Tensor, column: Tensor, expert_ids: Tensor, layout: Layout, options: Options
) -> tuple[Tensor, Tensor | None]:
    """The rows to send and, quantized, the scale of each."""
    if options.quant_mode == NO_QUANTIZATION:
        return x.index_select(0, token), None
    if options.scales is None:  # the same for all experts: quantized once
        values, scale = dynamic_int8(x.float())
        return values.index_select(0, token), scale.squeeze(1).index_select(0, token)
    k = expert_ids.shape[1]
    expert = layout.shared + expert_ids[token, column.clamp_max(k - 1)]
    factors = options.scales.index_select(0, torch.where(column < k, expert, column - k))
    values, scale = dynamic_int8(x.index_select(0, token).float() * factors)
    return values, scale.squeeze(1)


OPERATOR = declare(
    "npu_moe_distribute_dispatch_v2(Tensor x, Tensor expert_ids, str group_ep, int ep_world_size, int ep_rank_id, "
    "int moe_expert_num, *, Tensor? scales=None, Tensor? x_active_mask=None, Tensor? expert_scales=None, "
    "Tensor? elastic_info=None, Tensor? performance_info=None, str group_tp='', int tp_world_size=0, int tp_rank_id=0, "
    "int expert_shard_type=0, int shared_expert_num=1, int shared_expert_rank_num=0, int quant_mode=0, int global_bs=0, "
    "int expert_token_nums_type=1, str comm_alg='', int zero_expert_num=0, int copy_expert_num=0, int const_expert_num=0, "
    "int? y_dtype=None, int? x_dtype=None, int? scales_dtype=None) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=fake,
    fallback=dispatch,
)
