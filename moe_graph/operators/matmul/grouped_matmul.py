"""`npu_grouped_matmul(x, weight, ...)`: y_i = x_i @ weight_i + bias_i for groups i of differing size.

    group_type  -1 (x_i, weight_i, y_i are separate tensors)   0 (the rows M of x are grouped)   2 (its columns K are)
    group_type   0: x [M, K] or a list of [M_i, K], weight [G, K, N] or a list of [K, N] -> y [M, N]
    group_type   2: x [M, K], weight [K, N] -> y [G, M, N]; a list of weights [K_i, N] -> a list of y [M, N]
    group_list   sizes along the grouped dimension: 0 their running sum, 1 the sizes, 2 pairs (group, size) in the order of the rows
    int8 x:      y = (x @ weight + int32 bias) * scale * per_token_scale + floating point bias, then act_type
    int8 results: y = (x @ weight + int32 bias) * scale (+ its offset), rounded; scale is int64 of npu_trans_quant_param
    int8 weight: y = x @ ((weight + antiquant_offset) * antiquant_scale) + bias; the two are [N], or [parts, N] for equal parts of K;
                 and weights of int4, eight in each int32 along N (or along K, if that is how K fits)

Sources: the operator's page in the torch_npu documentation; the documents of aclnnGroupedMatmulV4 and V5; torch_npu's fake
implementation for shapes and dtypes. Accumulation is float32 (exact for int8), rounded once. Rows of x beyond the last group, which
a padded buffer has, are 0 here and not written on a device. Integers by weights of int4: `grouped_matmul_int4`. The types of Ascend
950: `grouped_matmul_float8`.

The groups are separate products, so the fallback reads group_list on the host: on a device other than the CPU that is one
synchronization. The gradient is made of the operator itself and reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.declaration import declare
from moe_graph.operators.ge import GeKernel, Planned, Tensors
from moe_graph.operators.matmul import grouped_matmul_float8, grouped_matmul_int4, products, scaled_operands
from moe_graph.operators.matmul.grouped_matmul_checks import (
    ACTIVATIONS,
    COUNT,
    CUMSUM,
    HALVES,
    KEY_VALUE,
    Axis,
    Form,
    Options,
    check,
    check_arguments,
)
from moe_graph.operators.matmul.grouped_matmul_gradient import grouped_matmul_autograd, grouped_matmul_batches
from moe_graph.operators.matmul.products import exact_product, multiply
from moe_graph.operators.quantization import destination, int4
from moe_graph.operators.quantization.int8 import INT8_MAX
from moe_graph.operators.quantization.trans_quant_param import unpacked


def fake(x: Sequence[Tensor], weight: Sequence[Tensor], **keywords: Any) -> list[Tensor]:
    """Outputs by the form of the call; the values of group_list are not looked at."""
    options = Options(**keywords)
    if grouped_matmul_float8.is_float8(x, weight, options):
        dtype = grouped_matmul_float8.result_dtype(x, grouped_matmul_float8.names(x, weight, options), options)
        inner, columns = weight[0].shape[-2:]
        if options.weight_dtype == 296 and x[0].shape[-1] not in (inner, 2 * inner):
            columns = 2 * columns  # two to a byte along N
        return [x[0].new_empty((x[0].shape[0], columns), dtype=dtype)]
    if grouped_matmul_int4.is_int4(x, weight):
        return [grouped_matmul_int4.result(x, weight, options)]
    weight = _whole(x, weight)
    form = check_arguments(x, weight, options)
    if form.axis is Axis.COLUMNS:
        rows, width = x[0].shape[0], weight[0].shape[-1]
        if form.joined:
            return [x[0].new_empty((_listed(options).shape[0], rows, width), dtype=form.dtype)]
        return [x[0].new_empty((rows, matrix.shape[-1]), dtype=form.dtype) for matrix in weight]
    if form.joined:
        total = sum(matrix.shape[0] for matrix in x)
        return [x[0].new_empty((total, weight[0].shape[-1]), dtype=form.dtype)]
    if form.axis is Axis.ROWS:  # one x and a group_list of integers
        assert options.group_list is not None
        sizes = [stop - start for start, stop in _between([0, *options.group_list])]
        shapes = [(size, matrix.shape[-1]) for size, matrix in zip(sizes, weight)]
        return [x[0].new_empty(shape, dtype=form.dtype) for shape in shapes]
    return [a.new_empty((*a.shape[:-1], b.shape[-1]), dtype=form.dtype) for a, b in zip(x, weight)]


def _refined_fake(
    theirs: Callable[..., Any], x: Sequence[Tensor], weight: Sequence[Tensor], **keywords: Any
) -> list[Tensor]:
    """torch_npu's. With one x, a group_list of integers and split_item 0 it gives one output, its own NPU kernel one for each weight;
    with split_item 1, which is the same form, it knows them."""
    listed = keywords.get("group_list")
    if len(x) == 1 and listed is not None and len(listed) == len(weight) > 1 and not keywords.get("split_item", 0):
        keywords["split_item"] = 1
    return list(theirs(x, weight, **keywords))


def grouped_matmul(x: Sequence[Tensor], weight: Sequence[Tensor], **keywords: Any) -> list[Tensor]:
    """The products, as the module's document says; the keyword arguments are the operator's.

    Raises ValueError as `check_arguments`, and for a group_list whose values do not fit x.
    """
    options = Options(**keywords)
    if grouped_matmul_float8.is_float8(x, weight, options):
        kinds = grouped_matmul_float8.names(x, weight, options)
        matrices = [scaled_operands.carried(matrix, kinds[1]) for matrix in weight]
        return _of_float8([scaled_operands.carried(matrix, kinds[0]) for matrix in x], matrices, kinds, options)
    if grouped_matmul_int4.is_int4(x, weight):
        return grouped_matmul_int4.grouped(x, weight, options, _segments)
    weight = _whole(x, weight)
    form = check_arguments(x, weight, options)
    if form.axis is Axis.COLUMNS:
        return _by_columns(x[0], weight, form, options)
    if form.axis is Axis.ROWS:
        return _at_once(x, weight, form, options) or _by_rows(x, weight, form, options)
    outputs = []
    for index, (a, b) in enumerate(zip(x, weight)):
        rows = a.reshape(-1, a.shape[-1])
        output = rows.new_empty((rows.shape[0], b.shape[-1]), dtype=form.dtype)
        _product(rows, index, weight, form, options, output)
        outputs.append(output.view(*a.shape[:-1], b.shape[-1]))
    return outputs


def _of_float8(x: Sequence[Tensor], weight: Sequence[Tensor], kinds: tuple[str, str], options: Options) -> list[Tensor]:
    """A call of float8, hifloat8 or float4, whose operands are carried, one element in each place."""
    dtype = grouped_matmul_float8.result_dtype(x, kinds, options)
    groups = weight[0].shape[0] if len(weight) == 1 else len(weight)
    return grouped_matmul_float8.compute(x[0], weight, kinds, options, dtype, _segments(options, len(x[0]), groups))


def _whole(x: Sequence[Tensor], weight: Sequence[Tensor]) -> Sequence[Tensor]:
    """The weights, those of int4 in int32 of a half-precision x as int8."""
    if not x or x[0].dtype not in HALVES:
        return weight
    depths = [x[i if len(x) == len(weight) else 0].shape[-1] for i in range(len(weight))]
    return [_of_int4(matrix, k) if matrix.dtype == torch.int32 else matrix for matrix, k in zip(weight, depths)]


def _of_int4(words: Tensor, depth: int) -> Tensor:
    if words.dim() >= 2 and words.shape[-2] * int4.PER_WORD == depth:
        return int4.unpacked(words.transpose(-1, -2)).transpose(-1, -2)
    return int4.unpacked(words)


def _at_once(x: Sequence[Tensor], weight: Sequence[Tensor], form: Form, options: Options) -> list[Tensor] | None:
    """All products of a call of the most usual form; None for the others, and where it is the loop that says what is wrong."""
    listed = options.group_list
    if len(x) > 1 or not form.stacked or form.quantized or options.bias:
        return None
    if not isinstance(listed, Tensor) or options.group_list_type == KEY_VALUE:
        return None
    joined = products.grouped(x[0], weight[0], listed.cumsum(0) if options.group_list_type == COUNT else listed)
    return None if joined is None else [joined]


def _by_rows(x: Sequence[Tensor], weight: Sequence[Tensor], form: Form, options: Options) -> list[Tensor]:
    total = sum(len(matrix) for matrix in x)
    groups = form.groups(weight)
    if options.group_list is None:
        segments = [(start, stop, i) for i, (start, stop) in enumerate(_between(_running([len(m) for m in x])))]
    else:
        segments = list(_segments(options, total, groups))
        if len(x) > 1 and [stop - start for start, stop, _ in segments] != [len(matrix) for matrix in x]:
            check.refuse("group_list", "the first sizes of x", [stop - start for start, stop, _ in segments])
    if form.joined:
        joined = x[0].new_empty((total, weight[0].shape[-1]), dtype=form.dtype)
        joined[segments[-1][1] if segments else 0 :] = 0
        outputs = [joined[start:stop] for start, stop, _ in segments]
    else:
        shapes = [(stop - start, weight[index].shape[-1]) for start, stop, index in segments]
        outputs = [x[0].new_empty(shape, dtype=form.dtype) for shape in shapes]
    for position, ((start, stop, index), output) in enumerate(zip(segments, outputs)):
        if stop > start:
            rows = x[position] if len(x) > 1 else x[0][start:stop]
            tokens = options.per_token_scale[0][start:stop] if options.per_token_scale else None
            _product(rows, index, weight, form, options, output, tokens)
    return [joined] if form.joined else outputs


def _by_columns(x: Tensor, weight: Sequence[Tensor], form: Form, options: Options) -> list[Tensor]:
    if not form.joined:
        parts = x[:, : sum(len(matrix) for matrix in weight)].split([len(matrix) for matrix in weight], dim=1)
        outputs = [x.new_empty((len(x), matrix.shape[-1])) for matrix in weight]
        for part, matrix, output in zip(parts, weight, outputs):
            multiply(part, matrix, output)
        return outputs
    groups = _listed(options).shape[0]
    output = x.new_zeros((groups, len(x), weight[0].shape[-1]))
    for start, stop, index in _segments(options, x.shape[1], groups):
        if stop > start:
            multiply(x[:, start:stop], weight[0][start:stop], output[index])
    return [output]


def _listed(options: Options) -> Tensor:
    """group_list of a call that takes it as a tensor only, which has been checked."""
    assert isinstance(options.group_list, Tensor)
    return options.group_list


def _segments(options: Options, total: int, groups: Any) -> Iterator[tuple[int, int, int]]:
    """(start, stop, group) of each product along the grouped dimension of `total` elements, empty ones too."""
    listed = options.group_list
    values: list[Any] = listed.tolist() if isinstance(listed, Tensor) else list(listed or ())
    order: Sequence[int] = range(groups)
    if options.group_list_type == KEY_VALUE:
        order, sizes = [key for key, _ in values], [size for _, size in values]
        used = [key for key, size in values if size]
        if len(set(used)) != len(used) or any(not 0 <= key < groups for key in used):
            check.refuse("group_list", f"pairs with different groups from 0 to {groups - 1}", values)
    elif options.group_list_type in (None, CUMSUM):
        sizes = [stop - start for start, stop in _between([0, *values])]
    else:
        sizes = values
    if any(size < 0 for size in sizes) or sum(sizes) > total:
        what = "non-negative and non-decreasing" if options.group_list_type in (None, CUMSUM) else "non-negative sizes"
        check.refuse("group_list", f"{what}, up to x's {total} in all", values)
    for (start, stop), group in zip(_between(_running(sizes)), order):
        yield start, stop, group


def _running(sizes: Sequence[int]) -> list[int]:
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    return ends


def _between(bounds: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip(bounds, bounds[1:])


def _product(
    x: Tensor,
    index: int,
    weight: Sequence[Tensor],
    form: Form,
    options: Options,
    output: Tensor,
    token_scale: Tensor | None = None,
) -> None:
    """One group's rows [m, K] times weight `index`, into `output` [m, N]. token_scale: per_token_scale of these rows."""

    def of_group(tensors: Sequence[Tensor] | None) -> Tensor | None:
        return None if not tensors else tensors[0][index] if form.stacked else tensors[index]

    matrix, bias = weight[0][index] if form.stacked else weight[index], of_group(options.bias)
    if x.dtype != torch.int8:
        if form.quantized:
            offset, factors = of_group(options.antiquant_offset), of_group(options.antiquant_scale)
            assert factors is not None  # checked: it is given with quantised weights
            factors = factors.float().reshape(-1, 1, matrix.shape[-1])
            parts = matrix.float().reshape(len(factors), -1, matrix.shape[-1])
            if offset is not None:
                parts = parts + offset.float().reshape(factors.shape)
            matrix = (parts * factors).reshape(matrix.shape)
        multiply(x, matrix, output, bias)
        return
    y, scale = exact_product(x, matrix), of_group(options.scale)
    if bias is not None and bias.dtype == torch.int32:
        y, bias = y.to(torch.int32) + bias, None
    if scale is not None and output.dtype == torch.int8:
        steps, shift = unpacked(scale)
        y = y.float() * steps
        y = destination.rounded(y if shift is None else y + shift, INT8_MAX)
    elif scale is not None:
        y = y.float() * scale.float()
        if token_scale is not None:
            y *= token_scale.unsqueeze(1)
        y = ACTIVATIONS[options.act_type or 0](y if bias is None else y + bias.float())
    output.copy_(y)


# GroupedMatmul's attribute `dtype`, of int8 x: -1 leaves the output's type open. Of float8 x it has float32, too.
_GE_DTYPES = {0: torch.float16, 1: torch.bfloat16, 2: torch.int32, -1: torch.int8}
_GE_FLOAT8_DTYPES = {0: torch.float16, 1: torch.bfloat16, 3: torch.float32}


def _given(tensors: Tensors) -> Tensors | None:
    return None if len(tensors) == 1 and tensors[0].shape == (0,) else tensors or None


def _ge_grouped_matmul(
    x: Tensors,
    weight: Tensors,
    bias: Tensors,
    scale: Tensors,
    offset: Tensors,
    antiquant_scale: Tensors,
    antiquant_offset: Tensors,
    group_list: Tensor | None = None,
    per_token_scale: Tensor | None = None,
    *,
    split_item: int = 0,
    dtype: int = 0,
    transpose_weight: bool = False,
    transpose_x: bool = False,
    group_type: int = -1,
    group_list_type: int = 0,
    act_type: int = 0,
    tuning_config: list | tuple[int, ...] = (0,),
    node: Planned,
) -> list[Tensor]:
    """GE GroupedMatmul. A dynamic input that is left out comes as one tensor of no elements; matrices come as they are, never
    transposed by an attribute. With group_type -1 a group_list is the one that was given as integers."""
    if transpose_weight or transpose_x:
        raise ValueError("transpose_weight and transpose_x must be false, as torchair sets them")
    kinds = (
        scaled_operands.ge_name(node, 0, x[0]),
        scaled_operands.ge_name(node, len(x), weight[0]),
    )
    if any(kinds):
        lists = {"bias": bias, "scale": scale, "offset": offset, "antiquant_scale": antiquant_scale}
        options = Options(
            **{name: _given(tensors) for name, tensors in lists.items()},  # type: ignore[arg-type]
            per_token_scale=None if per_token_scale is None else [per_token_scale],
            group_list=group_list,
            split_item=split_item,
            group_type=group_type,
            group_list_type=group_list_type,
            act_type=act_type,
            output_dtype=dtypes.to_number(_GE_FLOAT8_DTYPES[dtype]),
        )
        return _of_float8(x, weight, kinds, options)
    # As the engine carries it; torchair of 2.8 leaves it packed.
    of_int4 = x[0].dtype in (torch.uint8, torch.int32)
    if of_int4 or (x[0].dtype == torch.int8 and weight[0].dtype in (torch.uint8, torch.int32)):
        options = Options(
            bias=_given(bias),
            scale=_given(scale),
            offset=_given(offset),
            per_token_scale=None if per_token_scale is None else [per_token_scale],
            group_list=group_list,
            split_item=split_item,
            group_type=group_type,
            group_list_type=group_list_type,
            act_type=act_type,
            output_dtype=dtypes.to_number(_GE_DTYPES[dtype]),
        )
        rows = int4.unpacked(x[0]) if x[0].dtype == torch.int32 else int4.of_carrier(x[0])
        return grouped_matmul_int4.compute(rows, of_int4, weight[0], options, _segments)
    listed = group_list.tolist() if group_type == -1 and group_list is not None else group_list
    return grouped_matmul(
        x,
        [int4.of_carrier(matrix) for matrix in weight] if x[0].dtype in HALVES else weight,
        bias=_given(bias),
        scale=_given(scale),
        offset=_given(offset),
        antiquant_scale=_given(antiquant_scale),
        antiquant_offset=_given(antiquant_offset),
        per_token_scale=None if per_token_scale is None else [per_token_scale],
        group_list=listed,
        split_item=split_item,
        group_type=group_type,
        group_list_type=group_list_type,
        act_type=act_type,
        output_dtype=dtypes.to_number(_GE_DTYPES[dtype]) if x[0].dtype == torch.int8 else None,
    )


_COMMON = (
    "Tensor[] x, Tensor[] weight, *, Tensor[]? bias=None, Tensor[]? scale=None, Tensor[]? offset=None, "
    "Tensor[]? antiquant_scale=None, Tensor[]? antiquant_offset=None, Tensor[]? per_token_scale=None"
)
_ACTIVATION = (
    "Tensor[]? activation_input=None, Tensor[]? activation_quant_scale=None, Tensor[]? activation_quant_offset=None, "
    "int? split_item=0, int? group_type=None, int? group_list_type=0, int? act_type=0"
)

OPERATOR = declare(
    f"npu_grouped_matmul({_COMMON}, Tensor? group_list=None, {_ACTIVATION}, int[]? tuning_config=None, "
    "int? output_dtype=None, int? x_dtype=None, int? weight_dtype=None, int? scale_dtype=None, "
    "int? per_token_scale_dtype=None) -> Tensor[]",
    fake=fake,
    fallback=grouped_matmul,
    autograd=grouped_matmul_autograd,
    vmap=grouped_matmul_batches,
    ge=[GeKernel("GroupedMatmul", _ge_grouped_matmul)],
)
LIST_OPERATOR = declare(
    f"npu_grouped_matmul.List({_COMMON}, int[]? group_list=None, {_ACTIVATION}, ScalarType? output_dtype=None) -> Tensor[]",
    fake=fake,
    fallback=grouped_matmul,
    autograd=grouped_matmul_autograd,
    vmap=grouped_matmul_batches,
    refined_fake=_refined_fake,
)
