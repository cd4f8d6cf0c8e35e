"""Calls of casts, slices, status and convolutions."""

from __future__ import annotations

import torch

from moe_graph.verification.calls.inputs import Call, Inputs

_BFLOAT16, _HIFLOAT8 = 15, 290  # numbers of dtypes, for parameters of type int


def calls(r: Inputs) -> dict[str, list[Call]]:
    """See `moe_graph.verification.calls`."""
    x = r.floats(8, 128)
    status = torch.zeros(8, dtype=torch.float32)
    index = r.numbers(8, 3, 2, dtype=torch.int64)
    cut = ([1, 0], [7, 100], [2, 3])
    weight, states = r.floats(3, 128, dtype=torch.bfloat16), r.floats(4, 2, 128, dtype=torch.bfloat16)
    rows = r.floats(8, 128, dtype=torch.bfloat16)
    sequences = {
        "query_start_loc": torch.tensor([0, 3, 8], dtype=torch.int32),
        "cache_indices": torch.tensor([2, 0], dtype=torch.int32),
        "num_computed_tokens": torch.tensor([0, 5], dtype=torch.int32),
    }
    return {
        "npu_dtype_cast": [Call((x, _BFLOAT16)), Call((x, _HIFLOAT8), product="950")],
        "npu_dtype_cast_": [Call((x, r.floats(8, 128, dtype=torch.float32)))],
        "_npu_dtype_cast": [Call((x, torch.bfloat16))],
        "npu_dtype_cast_backward": [Call((x, torch.float32))],
        "_npu_dtype_cast_backward": [Call((x, torch.float32))],
        "npu_alloc_float_status": [Call((status,))],
        "npu_get_float_status": [Call((status,))],
        "npu_clear_float_status": [Call((status,))],
        "_amp_foreach_non_finite_check": [Call(([x, rows],)), Call(([x, x / 0],))],
        "npu_gather_sparse_index": [Call((x, index))],
        "npu_gather_sparse_index_backward": [Call((r.floats(3, 2, 128), [8, 128], index))],
        "npu_indexing": [Call((x, *cut))],
        "npu_indexing.out": [Call((x, *cut), {"out": x.new_empty(3, 34)}, undefined=())],
        "npu_fused_causal_conv1d": [Call((rows, weight, states), sequences)],
        "npu_fused_causal_conv1d_v2": [Call((rows, weight, states), sequences)],
        "npu_masked_causal_conv1d": [
            Call((r.floats(6, 2, 128), r.floats(3, 128)), {"mask": r.numbers(2, 2, 6).bool()})
        ],
        "one_": [Call((x,))],
        "npu_one_hot": [Call((r.numbers(8, 3, 2),), {"depth": 9})],
        "npu_pad": [Call((x, [1, 2, 3]))],
        "npu_slice": [Call((x, [1, 7], [3, 100]))],
        "npu_slice.out": [Call((x, [1, 7], [3, 100]), {"out": x.new_empty(3, 100)})],
        "npu_transpose": [Call((x, [1, 0]))],
        "npu_transpose.out": [Call((x, [1, 0]), {"out": x.new_empty(128, 8)})],
        "npu_sort_v2": [Call((x,)), Call((x,), {"descending": True})],
        "npu_sort_v2.out": [Call((x,), {"out": torch.empty_like(x)})],
        "npu_max.dim": [Call((x, 1))],
        "npu_max_backward": [Call((r.floats(8), 1, r.numbers(128, 8), [8, 128], False))],
        "npu_min.dim": [Call((x, 1, True))],
        "npu_min_backward": [Call((r.floats(8), 1, r.numbers(128, 8), [8, 128], False))],
        "npu_broadcast": [Call((x[:, :1], [2, 8, 128]))],
        "npu_confusion_transpose": [Call((x, [1, 0], [64, 16], True)), Call((x, [1, 0], [64, 16], False))],
        "npu_confusion_transpose_backward": [Call((x, [1, 0], [128, 8], True))],
        "npu_masked_fill_range": [
            Call((x, torch.tensor([[3]]).int(), torch.tensor([[50]]).int(), torch.ones(1, dtype=x.dtype)))
        ],
    }
