"""Operators of torch_npu that have a document and are not served, and why: their errors say it, and the page of operators lists it."""

from __future__ import annotations

from collections.abc import Mapping

_BECAUSE: Mapping[str, str] = {
    "it belongs to object detection, which no MoE model has": """
        npu_anchor_response_flags npu_batch_nms npu_bounding_box_decode npu_bounding_box_encode npu_ciou npu_deformable_conv2d npu_diou
        npu_giou npu_grid_assign_positive npu_iou npu_nms_rotated npu_nms_v4 npu_nms_with_mask npu_ps_roi_pooling npu_ptiou
        npu_random_choice_with_mask npu_roi_align npu_rotated_iou npu_rotated_overlaps npu_yolo_boxes_encode
        """,
    "it is a convolution of CANN's older interface; torch.nn.functional.conv2d and its kind are served": """
        npu_conv2d npu_conv3d npu_conv_transpose2d npu_convolution npu_convolution_transpose
        """,
    "it belongs to CANN's older interface; torch.nn.GRU and torch.nn.LSTM are served": "npu_gru npu_lstm",
    "it belongs to CANN's older interface; torch.nn.functional.cross_entropy, which takes probabilities, too, is served": (
        "npu_softmax_cross_entropy_with_logits"
    ),
    "it belongs to CANN's older interface, and has not been built": "npu_sign_bits_pack npu_sign_bits_unpack",
    "it belongs to CANN's older interface; torch.optim.Adam is served": "npu_apply_adam npu_bert_apply_adam",
    "it belongs to CANN's older interface; torch.nn.functional.dropout is served": "_npu_dropout dropout_with_byte_mask",
    "it is attention of CANN's older interface; npu_fusion_attention is served": """
        npu_dropout_with_add_softmax npu_fused_attention_score npu_multi_head_attention
        """,
    "it moves data between the ranks of a deployment by addresses, whose layout no public document has": """
        npu_attention_to_ffn npu_ffn_to_attention npu_attention_worker_combine npu_ffn_worker_batching attention_worker_scheduler
        ffn_worker_scheduler
        """,
    "it shows tensors of a captured graph, whose launches moe_graph.trace records": "print_npugraph_tensor save_npugraph_tensor",
    "it has not been built: none of the public MoE models that run here calls it": """
        npu_advance_step_flashattn npu_block_sparse_attention npu_fused_floyd_attention
        """,
    "it has not been built; npu_top_k_top_p is served": "npu_top_k_top_p_sample",
    "no document says what p_scale does": "npu_quant_fusion_attention",
    "its document names the steps, not their scales and roundings, and no test has numbers; npu_mla_prolog_v3 is served": (
        "npu_mla_preprocess"
    ),
    "no document or test says how scale and offset are used; npu_rms_norm_quant is served": "_npu_quant_rms_norm",
    "it is an operator of Atlas inference products (310P), which are not simulated": "_npu_paged_attention_splitfuse_v2",
}

REASONS: Mapping[str, str] = {name: why for why, names in _BECAUSE.items() for name in names.split()}
"""The operator's name, without namespace and overload, and why it is not served."""


def why(name: str) -> str | None:
    """The reason, for an operator, its gradient or its in-place form; None if the operator is not in the list."""
    base = name.rpartition("::")[2].partition(".")[0]
    for end in ("", "_", "_backward", "_grad"):
        if base.endswith(end) and base[: len(base) - len(end)] in REASONS:
            return REASONS[base[: len(base) - len(end)]]
    return None


def by_reason() -> list[tuple[str, list[str]]]:
    """Each reason with its operators, in order."""
    return [(reason, names.split()) for reason, names in _BECAUSE.items()]
