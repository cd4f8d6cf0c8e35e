"""`npu_moe_init_routing_v2(x, expert_idx, ...)`: tokens expanded to their K experts each and sorted by expert.

    x [N, H], expert_idx [N, K] int32, of `expert_num` experts (-1: of none); of them [start, end) = active_expert_range are active
    expanded_x [M, H]                M = N * K, or min(active_num, N * K) if active_num > 0; row i is x[sorted_row[i] // K]
    expanded_row_idx [N * K] int32   row_idx_type 0: expanded_row_idx[sorted_row[i]] = i; 1: expanded_row_idx[i] = sorted_row[i]
    expert_tokens int64              expert_tokens_num_type 0: running sum, 1: count, both [end - start]; 2: pairs (expert, count) of
                                     the active experts that have tokens, [expert_num, 2]
    expanded_scale float32           quant_mode -1: scale of each row of expanded_x; 1: its quantization scale
    quantization                     quant_mode 0: round(x * scale + offset), scale and offset [1]
                                     1: round(v / expanded_scale), v = x * scale, scale [end - start, H] or [1, H]
    drop_pad_mode 1                  expanded_x [expert_num, expert_capacity, H]: each expert's first tokens, filled up with 0;
                                     expanded_row_idx[sorted_row[i]] is the row among expert_num * expert_capacity, -1 if dropped

`sorted_row` is the stable sort of expert_idx, flattened, by expert: the active ones, those from `end` on, and last those below `start`
as they come. active_num has no influence on index and counts. With no tokens nothing is computed: torch_npu returns before its kernel,
so that the values are not looked at; counts are 0.

Sources: the operator's page in the torch_npu documentation; the document of aclnnMoeInitRoutingV3 (static quantization, running sum,
drop_pad_mode); op-plugin's test of the operator; torch_npu's fake implementation (shapes). What these leave undefined: rows of
expanded_x and expanded_scale beyond the active ones, and pairs beyond the last, are 0 here. An output
that was not asked for (expert_tokens_num_flag False; expanded_scale with quant_mode 0) is a single 0, of torch_npu's fake shape ().
Quantization is in float32 (the device's static one goes through float16, and may differ by 1). The documents promise inference only; the
fallback's expanded_x and expanded_scale have gradients, those of what they are composed of, where nothing is quantized.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import declare
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.quantization.int8 import INT8_MAX, INT8_MIN, check_values, dynamic_int8

_check = Checks("npu_moe_init_routing_v2")
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
NOT_QUANTIZED, STATIC, DYNAMIC = -1, 0, 1
CUMSUM, COUNT, KEY_VALUE = 0, 1, 2
GATHER, SCATTER = 0, 1
DROPLESS, DROP_PAD = 0, 1
MAX_EXPERTS, MAX_EXPERTS_KEY_VALUE = 10240, 5120


class Options(NamedTuple):
    """The keyword arguments, with the schema's defaults."""

    scale: Tensor | None = None
    offset: Tensor | None = None
    active_num: int = -1
    expert_capacity: int = -1
    expert_num: int = -1
    drop_pad_mode: int = DROPLESS
    expert_tokens_num_type: int = CUMSUM
    expert_tokens_num_flag: bool = False
    quant_mode: int = NOT_QUANTIZED
    active_expert_range: list[int] | tuple[int, ...] = ()
    row_idx_type: int = GATHER
    x_dtype: int | None = None

    @property
    def experts(self) -> tuple[int, int]:
        """The active experts, [start, end)."""
        start, end = self.active_expert_range or (0, self.expert_num)
        return start, end


def _check_arguments(x: Tensor, expert_idx: Tensor, options: Options) -> None:
    if options.quant_mode not in (NOT_QUANTIZED, STATIC, DYNAMIC):
        _check.refuse(
            "quant_mode", "-1, 0 or 1 (those of float8, hifloat8, float4 and int4 have no fallback)", options.quant_mode
        )
    _check.own_dtype("x_dtype", options.x_dtype, x)
    _check.dtype("x", x, (*FLOATS, torch.int8) if options.quant_mode == NOT_QUANTIZED else FLOATS)
    _check.rank("x", x, (2,), "[N, H]")
    _check.dtype("expert_idx", expert_idx, (torch.int32,))
    _check.rank("expert_idx", expert_idx, (2,), "[N, K]")
    _check.device("expert_idx", expert_idx, "x", x)
    _check.size(expert_idx.shape[0] == x.shape[0], "expert_idx", f"of first size {x.shape[0]}, that of x", expert_idx)
    _check.value("expert_tokens_num_type", options.expert_tokens_num_type, (CUMSUM, COUNT, KEY_VALUE))
    _check.value("row_idx_type", options.row_idx_type, (GATHER, SCATTER))
    most = MAX_EXPERTS_KEY_VALUE if options.expert_tokens_num_type == KEY_VALUE else MAX_EXPERTS
    _check.value("expert_num", options.expert_num, range(1, most + 1))
    _check_range(options)
    _check.value("drop_pad_mode", options.drop_pad_mode, (DROPLESS, DROP_PAD))
    if options.drop_pad_mode == DROP_PAD:
        _check_drop_pad(x, options)
    elif options.active_num < -1:
        _check.refuse("active_num", "-1 or more", options.active_num)
    _check_scale(x, options)


def _check_range(options: Options) -> None:
    given = list(options.active_expert_range)
    if given and not (len(given) == 2 and 0 <= given[0] < given[1] <= options.expert_num):
        _check.refuse(
            "active_expert_range", f"[start, end) with 0 <= start < end <= expert_num = {options.expert_num}", given
        )


def _check_drop_pad(x: Tensor, options: Options) -> None:
    capacity, rows = options.expert_capacity, x.shape[0]
    if capacity < 1:
        _check.refuse("expert_capacity", "from 1 to the number of tokens with drop_pad_mode 1", capacity)
    _check.size(
        (isinstance(rows, int) and rows == 0) or capacity <= rows,
        "x",
        f"of at least expert_capacity = {capacity} tokens, for expert_capacity is at most N",
        x,
    )
    if options.experts != (0, options.expert_num):
        _check.refuse(
            "active_expert_range", f"[0, {options.expert_num}] with drop_pad_mode 1", list(options.active_expert_range)
        )
    if options.expert_tokens_num_flag and options.expert_tokens_num_type != COUNT:
        _check.refuse("expert_tokens_num_type", "1 with drop_pad_mode 1", options.expert_tokens_num_type)
    if options.row_idx_type != GATHER:
        _check.refuse("row_idx_type", "0 with drop_pad_mode 1", options.row_idx_type)


def _check_scale(x: Tensor, options: Options) -> None:
    scale, offset, mode = options.scale, options.offset, options.quant_mode
    if isinstance(x.shape[0], int) and x.shape[0] == 0:
        return
    for name, tensor in (("scale", scale), ("offset", offset)):
        if mode == STATIC and tensor is None:
            _check.refuse(name, "given with quant_mode 0", None)
        if tensor is not None:
            _check.dtype(name, tensor, (torch.float32,))
            _check.device(name, tensor, "x", x)
    if mode != STATIC:
        _check.absent("offset", offset, f"with quant_mode {mode}")
    if scale is None:
        return
    if mode == STATIC:
        for name, tensor in (("scale", scale), ("offset", offset)):
            assert tensor is not None
            _check.rank(name, tensor, (1,), "[1] with quant_mode 0")
            _check.size(tensor.shape[0] == 1, name, "of shape [1] with quant_mode 0", tensor)
    elif mode == NOT_QUANTIZED:
        _check.rank("scale", scale, (1,), "[N] with quant_mode -1")
        _check.size(scale.shape[0] == x.shape[0], "scale", f"of shape [{x.shape[0]}], one for each token", scale)
    else:
        start, end = options.experts
        _check.rank("scale", scale, (2,), "[end - start, H] or [1, H] with quant_mode 1")
        if scale.shape[0] != 1:
            _check.size(scale.shape[0] == end - start, "scale", f"of first size 1 or {end - start}", scale)
        _check.size(scale.shape[1] == x.shape[1], "scale", f"of last size {x.shape[1]}, that of x", scale)


def fake(x: Tensor, expert_idx: Tensor, **keywords: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four outputs' shapes, as the module's document says, and dtypes."""
    options = Options(**keywords)
    _check_arguments(x, expert_idx, options)
    start, end = options.experts
    total = expert_idx.shape[0] * expert_idx.shape[1]
    if options.drop_pad_mode == DROP_PAD:
        rows: int | torch.SymInt = options.expert_num * options.expert_capacity
        expanded: tuple = (options.expert_num, options.expert_capacity, x.shape[1])
    else:
        rows = _row_count(total, options)
        expanded = (rows, x.shape[1])
    tokens: tuple = (options.expert_num, 2) if options.expert_tokens_num_type == KEY_VALUE else (end - start,)
    return (
        x.new_empty(expanded, dtype=x.dtype if options.quant_mode == NOT_QUANTIZED else torch.int8),
        x.new_empty((total,), dtype=torch.int32),
        x.new_empty(tokens if options.expert_tokens_num_flag else (), dtype=torch.int64),
        x.new_empty(() if options.quant_mode == STATIC else (rows,), dtype=torch.float32),
    )


def _refined_fake(theirs: Callable[..., Any], x: Tensor, expert_idx: Tensor, **keywords: Any) -> tuple[Tensor, ...]:
    """torch_npu's, whose min(active_num, N * K) is for one N alone: here N * K may stay symbolic."""
    active_num, dropless = keywords.get("active_num", -1), keywords.get("drop_pad_mode", DROPLESS) == DROPLESS
    total = expert_idx.numel()
    if active_num <= 0 or not dropless or isinstance(total, int):
        return tuple(theirs(x, expert_idx, **keywords))
    expanded, *others, scale = theirs(x, expert_idx, **{**keywords, "active_num": -1})
    rows = torch.sym_min(active_num, total)
    expanded, scale = (out.new_empty((rows, *out.shape[1:])) if out.dim() else out for out in (expanded, scale))
    return expanded, *others, scale


def _row_count(total: int | torch.SymInt, options: Options) -> int | torch.SymInt:
    return total if options.active_num <= 0 else torch.sym_min(options.active_num, total)


def init_routing_v2(x: Tensor, expert_idx: Tensor, **keywords: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four outputs, as the module's document says; the keyword arguments are the operator's.

    Raises ValueError on arguments that the documents exclude or that are not served, and on the CPU for an expert out of range.
    """
    options = Options(**keywords)
    _check_arguments(x, expert_idx, options)
    valid = ((expert_idx >= -1) & (expert_idx < options.expert_num)).all()
    check_values(_check, "expert_idx", expert_idx, valid, f"from -1 to expert_num - 1 = {options.expert_num - 1}")
    if len(x) == 0:  # a row of zeros that no row of the result takes, so that scale and offset may be anything
        x = torch.nn.functional.pad(x, (0, 0, 0, 1))
        neutral = x.new_ones(1, dtype=torch.float32) if options.quant_mode == STATIC else None
        options = options._replace(scale=neutral, offset=neutral)
    order = _Order.of(expert_idx, *options.experts)
    place = _capacity_rows if options.drop_pad_mode == DROP_PAD else _all_rows
    rows, index = place(order, options)
    expanded, scale = _expanded(x, rows, options)
    if options.drop_pad_mode == DROP_PAD:
        expanded = expanded.view(options.expert_num, options.expert_capacity, x.shape[1])
    counted = _tokens(order.ends, options) if options.expert_tokens_num_flag else order.ends.new_zeros(())
    return expanded, index.to(torch.int32), counted, scale


class _Order(NamedTuple):
    """expert_idx, flattened to [N * K], sorted by expert, those of no active expert last: from `end` on by expert, below `start` in place.

    slots  [N * K] the place in expert_idx of each      expert  [N * K] its expert among the active ones
    ends   [end - start] running sum of their counts    width   K
    """

    slots: Tensor
    expert: Tensor
    ends: Tensor
    width: int

    @classmethod
    def of(cls, expert_idx: Tensor, start: int, end: int) -> _Order:
        experts = expert_idx.flatten()
        experts = torch.where(experts < start, torch.iinfo(experts.dtype).max, experts - start)
        expert, slots = experts.sort(stable=True)
        expert = expert.clamp_max(end - start)
        counts = slots.new_zeros(end - start + 1).scatter_add(0, expert.long(), torch.ones_like(slots))
        return cls(slots, expert, counts.cumsum(0)[:-1], max(expert_idx.shape[1], 1))

    @property
    def places(self) -> Tensor:
        return torch.arange(len(self.slots), device=self.slots.device)


class _Rows(NamedTuple):
    """Of each row of the result [M]: its token, its expert among the active ones, and whether it is one at all."""

    token: Tensor
    expert: Tensor
    valid: Tensor


def _all_rows(order: _Order, options: Options) -> tuple[_Rows, Tensor]:
    """Dropless: the rows in order, up to active_num, and the index [N * K]."""
    count, valid = _row_count(len(order.slots), options), order.places < order.ends[-1]
    if options.row_idx_type == SCATTER:
        index = order.slots
    else:
        index = torch.empty_like(order.slots).scatter(0, order.slots, torch.where(valid, order.places, -1))
    return _Rows(order.slots[:count] // order.width, order.expert[:count], valid[:count]), index


def _capacity_rows(order: _Order, options: Options) -> tuple[_Rows, Tensor]:
    """With drop_pad_mode: `expert_capacity` rows for each expert, and the index [N * K] into them."""
    capacity, rows = options.expert_capacity, options.expert_num * options.expert_capacity
    starts = torch.nn.functional.pad(order.ends, (1, 0))  # one more, for the assignments to no expert
    within = order.places - starts[order.expert.long()]
    kept = (within < capacity) & (order.expert < options.expert_num)
    target = order.expert * capacity + within
    index = torch.empty_like(order.slots).scatter(0, order.slots, torch.where(kept, target, -1))
    source = order.slots.new_full((rows + 1,), -1).scatter(0, torch.where(kept, target, rows), order.slots)[:rows]
    expert = torch.arange(rows, device=source.device) // capacity
    return _Rows(source.clamp_min(0) // order.width, expert, source >= 0), index


def _expanded(x: Tensor, rows: _Rows, options: Options) -> tuple[Tensor, Tensor]:
    """The tokens of the rows [M, H], quantized if they are to be, and expanded_scale."""
    scale, mode = options.scale, options.quant_mode
    if mode == DYNAMIC and scale is not None and scale.shape[0] > 1:
        factors = scale.index_select(0, rows.expert.clamp_max(len(scale) - 1))
        expanded, of_row = dynamic_int8(x.index_select(0, rows.token).float() * factors)
    else:
        # What is the same for all experts is computed once for each token, not K times.
        values, of_token = x, scale if mode == NOT_QUANTIZED else None
        if mode == STATIC:
            assert scale is not None and options.offset is not None
            values = torch.round(x.float() * scale + options.offset).clamp(INT8_MIN, INT8_MAX).to(torch.int8)
        elif mode == DYNAMIC:
            values, of_token = dynamic_int8(x.float() if scale is None else x.float() * scale)
        expanded = values.index_select(0, rows.token)
        of_row = x.new_zeros(len(rows.token), dtype=torch.float32)
        if of_token is not None:
            of_row = of_token.flatten().index_select(0, rows.token)
    expanded = expanded.masked_fill(~rows.valid.unsqueeze(1), 0)
    if mode == STATIC:
        return expanded, x.new_zeros((), dtype=torch.float32)
    return expanded, of_row.flatten().masked_fill(~rows.valid, 0)


def _tokens(ends: Tensor, options: Options) -> Tensor:
    """The count output, from the running sum [end - start]."""
    if options.expert_tokens_num_type == CUMSUM:
        return ends
    counts = ends.diff(prepend=ends.new_zeros(1))
    if options.expert_tokens_num_type == COUNT:
        return counts
    numbers = torch.arange(*options.experts, device=ends.device)
    used = counts > 0
    position = torch.where(used, used.cumsum(0) - 1, options.expert_num)
    pairs = ends.new_zeros((options.expert_num + 1, 2))
    return pairs.index_copy(0, position, torch.stack((numbers.expand_as(counts), counts), 1))[:-1].clone()


def _ge_moe_init_routing_v3(
    x: Tensor,
    expert_idx: Tensor,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    *,
    active_num: int = -1,
    expert_capacity: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = -1,
    active_expert_range: list | None = None,
    row_idx_type: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """GE MoeInitRoutingV3: npu_moe_init_routing_v2."""
    return init_routing_v2(
        x,
        expert_idx,
        scale=scale,
        offset=offset,
        active_num=active_num,
        expert_capacity=expert_capacity,
        expert_num=expert_num,
        drop_pad_mode=drop_pad_mode,
        expert_tokens_num_type=expert_tokens_num_type,
        expert_tokens_num_flag=expert_tokens_num_flag,
        quant_mode=quant_mode,
        active_expert_range=active_expert_range or (),
        row_idx_type=row_idx_type,
    )


OPERATOR = declare(
    "npu_moe_init_routing_v2(Tensor x, Tensor expert_idx, *, Tensor? scale=None, Tensor? offset=None, int active_num=-1, "
    "int expert_capacity=-1, int expert_num=-1, int drop_pad_mode=0, int expert_tokens_num_type=0, "
    "bool expert_tokens_num_flag=False, int quant_mode=-1, int[2] active_expert_range=[], int row_idx_type=0, "
    "int? x_dtype=None) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=fake,
    fallback=init_routing_v2,
    differentiable=True,
    ge=[GeKernel("MoeInitRoutingV3", _ge_moe_init_routing_v3)],
    refined_fake=_refined_fake,
)
