"""`npu_moe_distribute_dispatch_v2(x, expert_ids, ...)`: each token to the ranks of its experts, in expert order there. By AlltoAlls.

    x [BS, H] float16 or bfloat16, or int32: 8 packed int4 values, moved as they are with their scales [BS]; expert_ids [BS, K] ->
    expand_x [A, H]        tokens received: by expert, then source rank, then order of sending; int8 with quant_mode 2
    dynamic_scales [A]     their scales: max |x * scales[expert]| / 127 with quant_mode 2, the given ones of int32 x
    assist_info [A * 128]  source rank (among those left), token and place among its experts of each row, three numbers after another
    expert_token_nums      tokens of each local expert (type 1) or their running sum (type 0)
    ep_recv_counts         running sum of the rows by expert, then source rank
    tp_recv_counts         rows received, if tp_world_size is 1
    expand_scales [A]      expert_scales of each row, if given (Atlas A2)

Symbols and sources: `moe_graph.operators.communication.distribute`, with the special experts, which receive no rows, and elastic_info.
The rows beyond the tokens received are 0 here and not written on a device. performance_info [R] is increased by the microseconds waited
for each rank. The sizes of the AlltoAlls are needed on the host, which synchronizes with a device once. Not served: quantizations other
than 0 and 2, and what the operator's page excludes, tensor parallelism.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe_graph.foundation import product
from moe_graph.operators import dtypes
from moe_graph.operators.checks import Checks
from moe_graph.operators.communication import distribute, expert_group
from moe_graph.operators.communication.distribute import Layout
from moe_graph.operators.declaration import declare
from moe_graph.operators.ge import GeKernel, GeType
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

    @property
    def special(self) -> tuple[int, int, int]:
        """The numbers of experts that receive no rows."""
        return self.zero_expert_num, self.copy_expert_num, self.const_expert_num


def _check_arguments(
    check: Checks, x: Tensor, expert_ids: Tensor, group_ep: str, ranks: int, rank: int, experts: int, options: Options
) -> Layout:
    check.rank("x", x, (2,), "[BS, H]")
    check.dtype("x", x, (*distribute.FLOATS, torch.int32))
    layout = distribute.check_layout(
        check, ranks, rank, experts, options.shared_expert_num, options.shared_expert_rank_num, options.special
    )
    check.own_dtype("x_dtype", options.x_dtype, x)
    check.own_dtype("scales_dtype", options.scales_dtype, options.scales)
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
    check.device("expert_ids", expert_ids, "x", x)
    check.size(expert_ids.shape[0] == x.shape[0], "expert_ids", f"of BS = {x.shape[0]}, x's first size", expert_ids)
    if options.global_bs:
        largest = options.global_bs // layout.ranks
        check.size(x.shape[0] <= largest, "x", f"of BS <= {largest}, global_bs of each rank", x)
    packed = x.dtype == torch.int32
    check.value("quant_mode", options.quant_mode, (NO_QUANTIZATION,) if packed else (NO_QUANTIZATION, DYNAMIC))
    if options.y_dtype is not None and dtypes.from_number(options.y_dtype) != _y_dtype(x, options):
        check.refuse("y_dtype", f"None or {_y_dtype(x, options)}", dtypes.name(options.y_dtype))
    check.value("expert_token_nums_type", options.expert_token_nums_type, (0, 1))
    if packed and options.scales is None:
        check.refuse("scales", "given with x of int32", None)
    if options.scales is not None:
        if options.quant_mode != DYNAMIC and not packed:
            check.refuse("scales", "None with quant_mode 0", f"shape {tuple(options.scales.shape)}")
        shape = (x.shape[0],) if packed else (layout.shared + layout.experts, x.shape[1])
        check.dtype("scales", options.scales, (torch.float32,))
        check.device("scales", options.scales, "x", x)
        check.rank("scales", options.scales, (len(shape),), "[BS]" if packed else "[experts, shared ones first, H]")
        for size, expected in zip(options.scales.shape, shape):
            check.size(size == expected, "scales", f"of shape {tuple(shape)}", options.scales)
    if options.expert_scales is not None:
        check.dtype("expert_scales", options.expert_scales, (torch.float32,))
        check.device("expert_scales", options.expert_scales, "x", x)
        check.rank("expert_scales", options.expert_scales, (2,), "[BS, K]")
        for size, expected in zip(options.expert_scales.shape, expert_ids.shape):
            check.size(size == expected, "expert_scales", f"of shape {tuple(expert_ids.shape)}", options.expert_scales)
    return layout


def _y_dtype(x: Tensor, options: Options) -> torch.dtype:
    return torch.int8 if options.quant_mode == DYNAMIC else x.dtype


def _empty_outputs(x: Tensor, expert_ids: Tensor, layout: Layout, options: Options, make: Any) -> tuple[Tensor, ...]:
    """The outputs, made by `make(shape, dtype=)`, of the shapes of torch_npu's fake implementation."""
    (tokens, hidden), k = x.shape, expert_ids.shape[1]
    elastic = options.elastic_info is not None
    rows, local = layout.max_rows(tokens, options.global_bs, k, elastic), layout.max_slots(elastic)
    assist = max(tokens * k, rows * ASSIST_WIDTH)
    counts = layout.ranks * local
    weights = 0 if options.expert_scales is None else rows
    if options.expert_scales is not None and product.current_product().name != "950":
        counts += (options.global_bs or tokens * layout.ranks) * 2 * k * (layout.ranks // _SERVER_RANKS)
    return (
        make((rows, hidden), dtype=_y_dtype(x, options)),
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
    layout = _check_arguments(_check, x, expert_ids, group_ep, ep_world_size, ep_rank_id, moe_expert_num, options)
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
    named = (group_ep, ep_world_size, ep_rank_id, moe_expert_num)
    return dispatched(_check, x, expert_ids, *named, Options(**keywords))


def dispatched(
    check: Checks, x: Tensor, expert_ids: Tensor, group_ep: str, ranks: int, rank: int, experts: int, options: Options
) -> tuple[Tensor, ...]:
    """The outputs of the operator whose checks are given, which may be another form of this one."""
    whole = _check_arguments(check, x, expert_ids, group_ep, ranks, rank, experts, options)
    layout = distribute.scaled_down(check, whole, options.elastic_info)
    distribute.check_routing_values(check, expert_ids, options.x_active_mask, layout)
    group = expert_group.find(check, "group_ep", group_ep, ranks, rank)
    peers = expert_group.Peers(group, layout.members, options.performance_info)
    local = layout.slots_of(layout.rank)

    route = layout.route(expert_ids, options.x_active_mask)
    received = peers.exchange(route.sizes, layout.slots_by_rank, [local] * layout.ranks)
    counts = received.view(layout.ranks, local)  # [source rank, local expert]
    send = [int(part.sum()) for part in route.sizes.cpu().split(layout.slots_by_rank)]
    receive = counts.sum(1).tolist()

    outputs = _empty_outputs(x, expert_ids, whole, options, x.new_zeros)
    expand_x, dynamic_scales, assist_info, expert_token_nums, ep_recv_counts, tp_recv_counts, expand_scales = outputs
    total = sum(receive)
    if total > len(expand_x):
        check.refuse(
            "global_bs", "the largest BS of a rank times the ranks where ranks differ in BS", options.global_bs
        )

    place, columns = route.places[: sum(send)], expert_ids.shape[1] + layout.shared
    token, column = place // columns, place % columns
    rows, scales = _rows(x, token, column, expert_ids, layout, options)
    routed, routed_scales, index, _ = torch.ops.npu.npu_moe_re_routing(
        peers.exchange(rows, send, receive),
        counts,
        per_token_scales=None if scales is None else peers.exchange(scales, send, receive),
    )
    expand_x[:total] = routed
    if scales is not None:
        dynamic_scales[:total] = routed_scales
    assist = torch.stack((torch.full_like(token, layout.rank), token, column), 1).to(torch.int32)
    moved = peers.exchange(assist, send, receive).index_select(0, index)
    assist_info[: total * _ASSISTED] = moved.flatten()
    if options.expert_scales is not None:
        weight = torch.nn.functional.pad(options.expert_scales, (0, layout.shared), value=1.0).flatten()
        moved = peers.exchange(weight.index_select(0, place), send, receive)
        expand_scales[:total] = moved.index_select(0, index)
    of_expert = counts.sum(0)
    expert_token_nums[:local] = of_expert if options.expert_token_nums_type else of_expert.cumsum(0)
    ep_recv_counts[: layout.ranks * local] = counts.t().flatten().cumsum(0)
    tp_recv_counts.fill_(total)
    return outputs


def _rows(
    x: Tensor, token: Tensor, column: Tensor, expert_ids: Tensor, layout: Layout, options: Options
) -> tuple[Tensor, Tensor | None]:
    """The rows to send and, quantized, the scale of each."""
    if options.quant_mode == NO_QUANTIZATION:
        given = options.scales
        return x.index_select(0, token), None if given is None else given.index_select(0, token)
    if options.scales is None:  # the same for all experts: quantized once
        values, scale = dynamic_int8(x.float())
        return values.index_select(0, token), scale.squeeze(1).index_select(0, token)
    k = expert_ids.shape[1]
    expert = layout.shared + expert_ids[token, column.clamp_max(k - 1)]
    factors = options.scales.index_select(0, torch.where(column < k, expert, column - k))
    values, scale = dynamic_int8(x.index_select(0, token).float() * factors)
    return values, scale.squeeze(1)


def _ge_moe_distribute_dispatch_v2(
    x: Tensor,
    expert_ids: Tensor,
    scales: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    expert_scales: Tensor | None = None,
    elastic_info: Tensor | None = None,
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
    quant_mode: int = 0,
    global_bs: int = 0,
    expert_token_nums_type: int = 1,
    comm_alg: str = "",
    zero_expert_num: int = 0,
    copy_expert_num: int = 0,
    const_expert_num: int = 0,
    y_dtype: GeType = 0,  # type: ignore[assignment]
) -> tuple[Tensor, ...]:
    """GE MoeDistributeDispatchV2: npu_moe_distribute_dispatch_v2 over the group that group_ep names, in this process."""
    return dispatch(
        x,
        expert_ids,
        group_ep,
        ep_world_size,
        ep_rank_id,
        moe_expert_num,
        scales=scales,
        x_active_mask=x_active_mask,
        expert_scales=expert_scales,
        elastic_info=elastic_info,
        performance_info=performance_info,
        group_tp=group_tp,
        tp_world_size=tp_world_size,
        tp_rank_id=tp_rank_id,
        expert_shard_type=expert_shard_type,
        shared_expert_num=shared_expert_num,
        shared_expert_rank_num=shared_expert_rank_num,
        quant_mode=quant_mode,
        global_bs=global_bs,
        expert_token_nums_type=expert_token_nums_type,
        comm_alg=comm_alg,
        zero_expert_num=zero_expert_num,
        copy_expert_num=copy_expert_num,
        const_expert_num=const_expert_num,
        y_dtype=y_dtype.torch,
    )


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
    ge=[GeKernel("MoeDistributeDispatchV2", _ge_moe_distribute_dispatch_v2)],
)
