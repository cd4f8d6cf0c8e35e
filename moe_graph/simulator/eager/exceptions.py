"""What is not served in the common way, by name. The common way: every operator that torch_npu registers, by the CPU's kernel."""

from __future__ import annotations

# torch_npu's own kernels stay: memory, and what is asked of it; shapes alone; conversions, whose float64 is float32 and whose copies to
# the host are pinned where they do not block. Views stay too, they are told by their schemas (`is_view`).
KEPT = frozenset(
    """
    aten::empty.memory_format aten::empty_strided aten::empty_like aten::new_empty_strided
    aten::resize_ aten::resize_as_ aten::set_ aten::set_.source_Storage aten::set_.source_Storage_storage_offset
    aten::set_.source_Tensor aten::is_set_to aten::record_stream aten::_pin_memory aten::is_pinned aten::_copy_from_and_resize
    aten::_pad_packed_sequence aten::_to_copy aten::quantize_per_tensor aten::quantize_per_channel
    npu::npu_moe_re_routing npu::npu_change_data_ptr npu::get_storage_size npu::copy_memory_ npu::set_op_timeout_ms
    npu::get_npu_format npu::npu_format_cast npu::npu_format_cast.Tensor npu::npu_format_cast_ npu::npu_format_cast_.acl_format
    npu::_npu_format_cast npu::_npu_format_cast.aclnn npu::_npu_format_cast.input_dtype
    """.split()
)

# Of these, what is a launch of the C runtime's.
LAUNCHED_BY_TORCH_NPU = ("npu::npu_moe_re_routing", "npu::copy_memory_")

# They change shape and strides, no memory: the CPU's kernel would change those of the CPU's view alone. torch_npu's own stay.
VIEWS_IN_PLACE = frozenset(
    """
    aten::as_strided_ aten::detach_ aten::rename_ aten::squeeze_ aten::swapaxes_ aten::swapdims_ aten::t_ aten::transpose_
    aten::unsqueeze_
    """.split()
)

# torch_npu has autograd kernels of its own for these, which call the NPU's; torch's composition of others takes their place.
COMPOSED = frozenset(
    """
    aten::lstm.input aten::gru.input aten::lstm_cell aten::scaled_dot_product_attention
    aten::max.out aten::min.out aten::nanmean.out aten::one_hot
    aten::__ior__.Scalar aten::__ior__.Tensor aten::fill_diagonal_ aten::slogdet aten::multilabel_margin_loss.out
    aten::affine_grid_generator_backward aten::conv_tbc_backward
    """.split()
)

# Of these, what torch_npu itself composes where a graph is traced. torch's composition has an assertion that torchair does not lower.
COMPOSED_BUT_TRACED = frozenset({"aten::one_hot"})

# Of these, what is int32 on a device for int32 indices. torch's composition wants int64.
LIKE_THE_INDEX = frozenset({"aten::one_hot"})

# Their CPU tensors, lengths of sequences, are parameters of the launch: read when it is made, whatever they hold at a replay.
HOST_PARAMETERS = frozenset(
    """
    atb::_npu_flash_attention atb::_npu_flash_attention_unpad atb::_npu_flash_attention_unpad_v2 atb::_npu_flash_attention_v3
    atb::_npu_flash_attention_qlens atb::_npu_paged_attention atb::_npu_paged_attention_get_workspace atb::_npu_paged_attention_mla
    atb::_npu_paged_attention_quant atb::_npu_paged_attention_splitfuse atb::_npu_quantize_per_tensor
    atb::npu_ring_mla atb::npu_ring_mla.out
    npu::npu_fusion_attention_v3 npu::npu_fusion_attention_v3.out npu::npu_fusion_attention_grad_v3 npu::npu_fusion_attention_grad_v3.out
    npu::_npu_fusion_attention_v3_get_max_workspace npu::_npu_fusion_attention_grad_v3_get_max_workspace
    """.split()
)

# Those that take CPU tensors beside NPU ones, on a device too, as arguments and in lists.
ACROSS_DEVICES = HOST_PARAMETERS | frozenset(
    """
    aten::copy_ aten::_to_copy.out aten::_copy_from aten::_foreach_copy_
    aten::_ctc_loss.Tensor aten::_ctc_loss_backward.Tensor
    aten::_foreach_addcdiv.Tensor aten::_foreach_addcdiv_.Tensor aten::_foreach_addcmul.Tensor aten::_foreach_addcmul_.Tensor
    """.split()
)

# Those that take them in a list alone, which are indices: the other tensors are the device's.
LISTS_ACROSS_DEVICES = frozenset(
    """
    aten::index.Tensor aten::index.Tensor_out aten::index_put aten::index_put_ aten::index_put.out aten::_index_put_impl_
    """.split()
)

# Reductions whose dimensions op-plugin checks itself: out of range is a RuntimeError on a device, an IndexError of torch on the CPU.
# By the name without the overload.
DIMENSIONS_CHECKED = frozenset(
    """
    aten::all aten::any aten::sum aten::nansum aten::mean aten::std aten::var aten::std_mean aten::var_mean aten::logsumexp aten::norm
    aten::linalg_vector_norm aten::max aten::min aten::aminmax aten::amax aten::amin aten::argmax aten::argmin aten::kthvalue
    """.split()
)

# Results of a type that they cannot have: CANN's kernel refuses them, which is a RuntimeError; torch's own check is a TypeError.
TYPES_CHECKED = frozenset({"aten::cat"})

# Results that stay on the host, by their places.
HOST_RESULTS = {"npu::npu_fusion_attention_v3": (4, 5)}

# Arguments, and the places of results that torch_npu's adapter allocates as [0] without them; its fake implementation gives other shapes.
EMPTY_WITHOUT = {
    "npu::npu_fusion_attention_grad_v3": {"sink": 4},
    "npu::npu_cross_entropy_loss": {"return_zloss": 2, "lse_square_scale_for_zloss": 3},
}

# Seed and offset are among their arguments, and torch_npu tags them as drawing all the same.
GIVEN_SEED = frozenset({"npu::_npu_dropout_gen_mask.Tensor"})
# They draw by a seed and an offset, which the NPU's generator gives if the caller does not and keep_prob leaves something to draw.
SEEDED = frozenset({"npu::npu_fusion_attention", "npu::npu_fusion_attention_v2", "npu::npu_fusion_attention_v3"})
