"""The eager operators that the simulated device serves, by their names in aten. All overloads are meant."""

from __future__ import annotations

import torch

_CREATION = """
    arange range linspace full fill fill_ zero_ zeros ones eye tril triu tril_ triu_ one_hot
"""

_ARITHMETIC = """
    add add_ sub sub_ rsub mul mul_ div div_ true_divide floor_divide floor_divide_ remainder remainder_ fmod fmod_ pow pow_
    neg neg_ abs abs_ sign sgn square sqrt sqrt_ rsqrt rsqrt_ reciprocal reciprocal_ exp exp_ exp2 expm1 log log_ log2 log10 log1p
    sin cos tan asin acos atan atan2 sinh cosh tanh tanh_ erf erfinv ceil floor round trunc frac ceil_ floor_ round_ trunc_
    clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_ maximum minimum fmax fmin lerp lerp_ addcmul addcmul_ addcdiv addcdiv_
    gcd lcm hypot logaddexp nan_to_num nan_to_num_ copysign
"""

_COMPARISON = """
    eq ne lt le gt ge eq_ ne_ lt_ le_ gt_ ge_ equal isnan isinf isfinite isposinf isneginf isclose is_nonzero
    logical_and logical_or logical_xor logical_not logical_and_ logical_or_ logical_xor_ logical_not_
    bitwise_and bitwise_or bitwise_xor bitwise_not bitwise_and_ bitwise_or_ bitwise_xor_ bitwise_not_
    bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__ __iand__ __ior__ __ixor__
    __lshift__ __rshift__ __ilshift__ __irshift__
    where all any isin
"""

_REDUCTION = """
    sum nansum mean prod max min amax amin aminmax argmax argmin std var std_mean var_mean norm linalg_vector_norm logsumexp median
    cumsum cumsum_ cumprod cumprod_ logcumsumexp cummax cummin _cummax_helper _cummin_helper count_nonzero bincount histc
    unique _unique _unique2 unique_dim unique_consecutive
"""

_LINEAR_ALGEBRA = """
    mm bmm addmm addmm_ baddbmm baddbmm_ addbmm mv addmv addmv_ dot vdot ger addr matmul linear einsum tensordot outer
    linalg_matrix_norm linalg_inv_ex triangular_solve
"""

_INDEXING = """
    index index_put index_put_ _index_put_impl_ index_select index_add index_add_ index_copy index_copy_ index_fill index_fill_
    gather scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_ take take_along_dim put put_
    masked_fill masked_fill_ masked_select masked_scatter masked_scatter_ nonzero nonzero_static argwhere
    repeat_interleave repeat cat _cat stack roll flip rot90 tile embedding embedding_dense_backward
    sort argsort topk msort kthvalue searchsorted bucketize
    slice_scatter select_scatter diagonal_scatter as_strided_scatter slice_backward select_backward diagonal_backward
    index_select_backward _embedding_bag constant_pad_nd
"""

_NEURAL = """
    softmax _softmax _softmax_backward_data log_softmax _log_softmax _log_softmax_backward_data
    relu relu_ leaky_relu leaky_relu_ leaky_relu_backward threshold threshold_ threshold_backward elu elu_ elu_backward
    silu silu_ silu_backward gelu gelu_ gelu_backward sigmoid sigmoid_ sigmoid_backward tanh_backward softplus softplus_backward
    hardtanh hardtanh_ hardswish hardswish_ hardsigmoid mish mish_ glu glu_backward logit
    mse_loss mse_loss_backward l1_loss smooth_l1_loss smooth_l1_loss_backward nll_loss_forward nll_loss_backward
    nll_loss2d_forward nll_loss2d_backward binary_cross_entropy binary_cross_entropy_backward binary_cross_entropy_with_logits
    native_layer_norm native_layer_norm_backward native_group_norm native_batch_norm native_batch_norm_backward rms_norm
    _fused_rms_norm _fused_rms_norm_backward
    native_dropout native_dropout_backward
"""

_RANDOM = """
    random_ normal normal_ uniform_ bernoulli bernoulli_ exponential_ geometric_ log_normal_ cauchy_ multinomial poisson randperm
    randint rand randn
"""

_COPY = """
    copy_ _to_copy clone _local_scalar_dense
"""

_OPTIMIZERS = """
    _fused_adam_ _fused_adamw_ _fused_sgd_ _fused_adagrad_ _amp_foreach_non_finite_check_and_unscale_ _amp_update_scale_
    _chunk_cat split_with_sizes_copy unbind_copy
"""

_GROUPS = (
    _CREATION,
    _ARITHMETIC,
    _COMPARISON,
    _REDUCTION,
    _LINEAR_ALGEBRA,
    _INDEXING,
    _NEURAL,
    _RANDOM,
    _COPY,
    _OPTIMIZERS,
)

# Functions of lists of tensors: torch has some hundred, all by this prefix.
_FOREACH = sorted(
    {
        name.partition("::")[2].partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::_foreach_")
    }
)

OPERATORS: tuple[str, ...] = tuple(dict.fromkeys([*(name for group in _GROUPS for name in group.split()), *_FOREACH]))

# Those that take CPU tensors beside NPU ones, on a device too.
ACROSS_DEVICES = frozenset({"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"})
