"""Computed in float32 and rounded once: the operators of aten whose CPU kernels for float16 and bfloat16 round in between, or are missing.

A device's kernels accumulate in float32. `LISTED` is the one list: eager operators on NPU tensors (`simulator.eager`) take it, and the
host engine's kernels of the same operators (`engine.kernels`) are made by the same `in_float32`, so eager and graph agree bit by bit.
What is not listed rounds once on the CPU, too: found by computing torch's own samples of every operator both ways.
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from moe_graph.foundation import cpu, transforms

HALF = (torch.float16, torch.bfloat16)

_Function = TypeVar("_Function", bound=Callable[..., Any])

# The results have the dtype of the first floating-point tensor, as op-plugin allocates them: of products, which take mixed dtypes, too.
_LIKE_THE_FIRST = """
    mm bmm addmm baddbmm addbmm matmul dot vdot _addmm_activation _trilinear
    convolution _convolution convolution_backward _slow_conv2d_forward _slow_conv2d_backward slow_conv3d slow_conv3d_forward
    slow_conv_dilated2d slow_conv_dilated3d slow_conv_transpose2d slow_conv_transpose3d conv_depthwise3d conv_tbc conv_tbc_backward
    native_batch_norm _native_batch_norm_legit _batch_norm_with_update native_batch_norm_backward batch_norm_backward
    native_layer_norm native_layer_norm_backward native_group_norm native_group_norm_backward
    avg_pool2d_backward avg_pool3d avg_pool3d_backward _adaptive_avg_pool2d_backward _adaptive_avg_pool3d _adaptive_avg_pool3d_backward
    max_pool2d_with_indices_backward max_pool3d_with_indices_backward fractional_max_pool2d_backward fractional_max_pool3d_backward
    upsample_linear1d upsample_linear1d_backward upsample_bilinear2d upsample_bilinear2d_backward upsample_bicubic2d
    upsample_bicubic2d_backward upsample_trilinear3d upsample_trilinear3d_backward
    _upsample_bilinear2d_aa _upsample_bilinear2d_aa_backward _upsample_bicubic2d_aa _upsample_bicubic2d_aa_backward
    grid_sampler_2d grid_sampler_2d_backward grid_sampler_3d grid_sampler_3d_backward
    reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward
    replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward
    col2im unfold_backward embedding_dense_backward embedding_renorm _embedding_bag _embedding_bag_forward_only
    _embedding_bag_backward _embedding_bag_dense_backward index_add index_reduce index_put
    _index_put_impl _unsafe_masked_index_put_accumulate
    _softmax_backward_data _log_softmax_backward_data glu_backward sigmoid_backward logit logit_backward
    logsumexp logcumsumexp cumsum cumprod prod renorm rsqrt special_entr special_i0e mvlgamma polygamma inverse
    _cdist_forward _cdist_backward _pdist_forward _pdist_backward cdist pdist
    nll_loss_forward nll_loss_backward nll_loss2d_forward nll_loss2d_backward
    multilabel_margin_loss_forward multilabel_margin_loss_backward multilabel_margin_loss
    matmul_backward matmul_double_backward _thnn_fused_lstm_cell _thnn_fused_lstm_cell_backward_impl _conv_depthwise2d
    slow_conv_dilated2d_backward slow_conv_transpose2d_backward l1_loss_backward kl_div_backward kl_div_target_backward
    repeat_interleave_backward_int repeat_interleave_backward_tensor npu_renorm_backward npu_gather_backward
    npu_binary_cross_entropy_with_logits_backward _masked_scale
    _foreach_add _foreach_sub _foreach_addcdiv _foreach_addcmul _foreach_pow _foreach_rsqrt _foreach_lerp _foreach_mm
"""

# The results have the dtype that torch promotes the tensors to.
_PROMOTED = """
    add sub rsub pow addmv addr mv dist linalg_cross ldexp floor_divide xlogy special_xlog1py _add_relu
    binary_cross_entropy binary_cross_entropy_backward binary_cross_entropy_with_logits mse_loss mse_loss_backward
    smooth_l1_loss smooth_l1_loss_backward huber_loss huber_loss_backward soft_margin_loss soft_margin_loss_backward
"""

# Results, by position, that stay float32: statistics, and gradients of weights that a device sums up in float32 (op-plugin).
_STATISTICS = {
    "native_batch_norm": (1, 2),
    "_native_batch_norm_legit": (1, 2),
    "_batch_norm_with_update": (1, 2),
    "native_batch_norm_backward": (1, 2),
    "batch_norm_backward": (1, 2),
    "native_layer_norm": (1, 2),
    "native_layer_norm_backward": (1, 2),
}

# Arguments that an operator writes to though its schema does not say so.
_WRITTEN = {"native_batch_norm": ("running_mean", "running_var")}

# Numbers that aclnn makes tensors of the result's dtype of: they are rounded first, eager as in a graph.
_ROUNDED_NUMBERS = {"add": ("alpha",), "sub": ("alpha",), "rsub": ("alpha",), "pow": ("exponent", "self")}

# Only where this argument is given, and true or a number other than 1; otherwise nothing is rounded in between.
_ONLY_WITH = {
    "add": "alpha",
    "sub": "alpha",
    "rsub": "alpha",
    "index_put": "accumulate",
    "_index_put_impl": "accumulate",
}

# The sums of a product depend on how its operands lie in memory: they are laid out one way, so that all ways give the same bits.
_PRODUCTS = "mm bmm addmm baddbmm addbmm matmul dot vdot mv addmv _addmm_activation"

# Products that the CPU, where it has them for a half type, sums up in float32 and rounds once itself.
_ROUNDED_BY_THE_CPU = "mm bmm matmul"

LISTED = frozenset(_LIKE_THE_FIRST.split()) | frozenset(_PROMOTED.split())
"""Names of aten's operators, without the overload's name and the underscore of the form in place."""


def base_name(overload: torch._ops.OpOverload) -> str:
    """An operator's name as `LISTED` has it: "add" of aten::add_.Tensor."""
    name = overload._schema.name.partition("::")[2]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def rounded_once(
    overload: torch._ops.OpOverload, function: Callable[..., Any] | None = None
) -> Callable[..., Any] | None:
    """An operator of aten as `LISTED` wants it, on CPU tensors; None if it is not listed. `function`: what computes it, if not itself."""
    schema, name = overload._schema, base_name(overload)
    way, position = halves(overload)
    if way is Halves.AS_THEY_ARE:
        return None
    names = [argument.name for argument in schema.arguments]
    written = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    written.update(_WRITTEN.get(name, ()))
    wide = _in_float32(
        function or overload,
        promoted=name in _PROMOTED.split(),
        statistics=_STATISTICS.get(name, ()),
        written=frozenset(written) | {names.index(n) for n in written},
        contiguous=name in _PRODUCTS.split(),
        numbers=frozenset(_ROUNDED_NUMBERS.get(name, ()))
        | {names.index(n) for n in _ROUNDED_NUMBERS.get(name, ()) if n in names},
    )
    if way is Halves.AS_A_PRODUCT:
        return _by_the_cpu(function or overload, wide)
    if way is Halves.NOT_AT_ALL:
        return wide
    condition = names[position]
    plain = function or overload

    def call(*args: Any, **kwargs: Any) -> Any:
        value = args[position] if position < len(args) else kwargs.get(condition, False)
        rounds = value is True or (value is not False and value != 1)
        return (wide if rounds else plain)(*args, **kwargs)

    return call


class Halves(enum.IntEnum):
    """How the CPU's kernel of an operator, as it is, serves float16 and bfloat16 tensors.

    AS_THEY_ARE: it rounds once. NOT_AT_ALL: `rounded_once` must. IF_ONE: the kernel does while an argument is false or 1.
    AS_A_PRODUCT: it does for contiguous matrices of one dtype where the CPU has instructions for it (`foundation.cpu`).
    """

    AS_THEY_ARE = 0
    NOT_AT_ALL = 1
    IF_ONE = 2
    AS_A_PRODUCT = 3


def halves(overload: torch._ops.OpOverload) -> tuple[Halves, int]:
    """What `rounded_once` does for an operator of aten, and the position of the argument that IF_ONE looks at, else -1."""
    schema, name = overload._schema, base_name(overload)
    if name not in LISTED:
        return Halves.AS_THEY_ARE, -1
    names = [argument.name for argument in schema.arguments]
    if name in _ROUNDED_BY_THE_CPU.split() and len(names) == 2:
        return Halves.AS_A_PRODUCT, -1
    if name in _ONLY_WITH:
        return Halves.IF_ONE, names.index(_ONLY_WITH[name])
    return Halves.NOT_AT_ALL, -1


@functools.cache
def listed(overload: torch._ops.OpOverload) -> Callable[..., Any]:
    """An operator of aten that `LISTED` has, computed as it is for NPU tensors. Raises ValueError for one that it has not."""
    function = rounded_once(overload)
    if function is None:
        raise ValueError(f"{overload} is not listed in moe_graph.operators.rounding")
    return function


def in_float32(function: _Function) -> _Function:
    """A function of CPU tensors that is computed in float32 where one of them is float16 or bfloat16, its results rounded once.

    float32 results take the dtype of the first floating-point tensor; those of a list that of the tensor in its place of the first
    argument. Where a dtype is given, that decides.
    """
    return _in_float32(function)  # type: ignore[return-value]


def softmax(x: Tensor, dim: int, half_to_float: bool = False, logarithm: bool = False) -> Tensor:
    """softmax along dim, or its logarithm, in the dtype of x, or with half_to_float in float32."""
    result = (torch.log_softmax if logarithm else torch.softmax)(x.float() if x.dtype in HALF else x, dim)
    return result if half_to_float else result.to(x.dtype)


def _in_float32(
    function: Callable[..., Any],
    promoted: bool = False,
    statistics: Sequence[int] = (),
    written: frozenset[int | str] = frozenset(),
    numbers: frozenset[int | str] = frozenset(),
    contiguous: bool = False,
) -> Callable[..., Any]:
    """`in_float32` with: results that stay float32, arguments written to and numbers rounded first, by position or name.

    `contiguous`: the float32 copies are; otherwise they lie as their tensors do.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        given = [*enumerate(args), *kwargs.items()]
        tensors = [tensor for _, value in given for tensor in transforms.tensors(value) if tensor.is_floating_point()]
        asked = [value for _, value in given if isinstance(value, torch.dtype)]
        if not any(tensor.dtype in HALF for tensor in tensors) and not any(dtype in HALF for dtype in asked):
            return function(*args, **kwargs)
        if asked:
            dtype = asked[0]
        else:
            dtype = functools.reduce(_promote, tensors).dtype if promoted else tensors[0].dtype
        widened = _Widened(torch.contiguous_format if contiguous else torch.preserve_format)
        values = {
            key: as_rounded(value, dtype) if key in numbers and isinstance(value, float) else widened(value)
            for key, value in given
        }
        result = function(*(values[i] for i in range(len(args))), **{name: values[name] for name in kwargs})
        for key, value in given:
            if key in written:
                widened.write_back(value)
        if isinstance(result, Tensor):
            return widened.narrow(result, dtype)
        if isinstance(result, list):
            places = args[0] if args and isinstance(args[0], (list, tuple)) else [None] * len(result)
            return [widened.narrow(r, dtype if like is None else like.dtype) for r, like in zip(result, places)]
        if isinstance(result, tuple):
            return tuple(
                widened.narrow(r, torch.float32 if position in statistics else dtype)
                for position, r in enumerate(result)
            )
        return result

    return functools.wraps(function)(call) if inspect.isfunction(function) else call


def _by_the_cpu(function: Callable[..., Any], wide: Callable[..., Any]) -> Callable[..., Any]:
    """A product of two matrices by the CPU's own instructions where `foundation.cpu` says that it has them, else `wide`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 2 and not kwargs:
            left, right = args
            one_half = left.dtype in HALF and left.dtype == right.dtype and left.dim() > 1 and right.dim() > 1
            if one_half and cpu.multiplies(left.dtype):
                return function(left.contiguous(), right.contiguous())
        return wide(*args, **kwargs)

    return call


class _Widened:
    """The float32 copies of one call's half tensors."""

    def __init__(self, memory_format: torch.memory_format) -> None:
        self._format = memory_format
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype in HALF:
            for narrow, wide in self._pairs:
                if narrow is value:
                    return wide
            wide = value.to(torch.float32, memory_format=self._format)
            self._pairs.append((value, wide))
            return wide
        if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
            return [self(item) for item in value]
        return torch.float32 if isinstance(value, torch.dtype) and value in HALF else value

    def write_back(self, value: Any) -> None:
        """What was computed in place of an argument is put into it, rounded; an out= tensor grows with its copy."""
        for narrow, wide in self._pairs:
            if any(tensor is narrow for tensor in transforms.tensors(value)):
                if narrow.shape != wide.shape:
                    narrow.resize_(wide.shape)
                narrow.copy_(wide)

    def narrow(self, result: Any, dtype: torch.dtype) -> Any:
        for narrow, wide in self._pairs:
            if result is wide:
                return narrow
        if isinstance(result, (list, tuple)):
            return [self.narrow(item, dtype) for item in result]
        return result.to(dtype) if isinstance(result, Tensor) and result.dtype == torch.float32 else result


def _promote(left: Tensor, right: Tensor) -> Tensor:
    dtype = torch.result_type(left, right)
    kept = left if left.dim() >= right.dim() else right
    return kept if kept.dtype == dtype else torch.empty(kept.shape, dtype=dtype, device="meta")


def as_rounded(number: float, dtype: torch.dtype) -> float:
    """The number of this dtype that is nearest to a number."""
    return torch.tensor(number, dtype=dtype).item()
