"""A call or two of each declared operator that `verify` compares with its reference: small, of sizes that the kernels' documents allow.

`calls` maps an operator's name to the arguments that its reference and its kernel take. An operator that is declared and has no call
here is named in the report as one that was not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_QINT8, _BFLOAT16 = 12, 15  # torch's numbers of dtypes, for parameters of type int


@dataclass(frozen=True)
class Call:
    """Arguments of an operator, tensors on the CPU. `undefined`: places of results that the kernel leaves undefined."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    undefined: tuple[int, ...] = ()


class Inputs:
    """Random tensors from one seed."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def floats(self, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        """Normal values."""
        return torch.randn(shape, generator=self._generator).to(dtype)

    def scales(self, *shape: int) -> Tensor:
        """float32 from 0.01 to 0.02."""
        return (1 + torch.rand(shape, generator=self._generator)) / 100

    def int8(self, *shape: int) -> Tensor:
        """Values from -128 to 127."""
        return torch.randint(-128, 128, shape, generator=self._generator).to(torch.int8)

    def numbers(self, below: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """Whole numbers from 0."""
        return torch.randint(below, shape, generator=self._generator).to(dtype)


def _angles(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """cos and sin [rows, width] float16 of a rotary embedding, its halves alike."""
    angles = torch.arange(rows)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    both = torch.cat((angles, angles), 1)
    return both.cos().half(), both.sin().half()


def calls() -> dict[str, list[Call]]:
    """Operator's name -> its calls, made anew each time. Some share tensors: give a kernel copies, it may change them."""
    r = Inputs()
    x, y, wide = r.floats(8, 128), r.floats(8, 128), r.floats(8, 256)
    gamma, beta = r.floats(128), r.floats(128)
    cos, sin = _angles(8, 64)
    heads = r.floats(2, 8, 4, 64)
    by_head = [t.view(1, 8, 1, 64).expand(2, 8, 1, 64).contiguous() for t in (cos, sin)]
    experts, rows = r.numbers(8, 16, 2), torch.arange(32, dtype=torch.int32).view(2, 16).t().contiguous()
    weight = r.int8(128, 64)
    return {
        "npu_rms_norm": [Call((x, gamma)), Call((x.float(), gamma.float(), 1e-5))],
        "npu_rms_norm_backward": [Call((y, x, gamma, torch.rsqrt(x.float().square().mean(-1, keepdim=True))))],
        "npu_add_rms_norm": [Call((x, y, gamma)), Call((x.bfloat16(), y.bfloat16(), gamma.bfloat16()))],
        "npu_add_rms_norm_cast": [Call((x, y, gamma))],
        "npu_gemma_rms_norm": [Call((x, gamma))],
        "npu_add_layer_norm": [Call((x, y, gamma, beta, 1e-5, True))],
        "npu_deep_norm": [Call((x, y, beta, gamma))],
        "npu_group_norm_silu": [Call((r.floats(2, 32, 8), r.floats(32), r.floats(32), 4, 1e-5))],
        "npu_group_norm_swish": [Call((r.floats(2, 32, 8), 4, r.floats(32), r.floats(32)))],
        "npu_layer_norm_eval": [Call((x, [128], gamma, beta))],
        "npu_swiglu": [Call((wide,)), Call((wide.bfloat16(), 0))],
        "npu_swiglu_backward": [Call((x, wide))],
        "npu_geglu": [Call((wide,)), Call((wide, -1, 0, True))],
        "npu_gelu": [Call((x,)), Call((x,), {"approximate": "tanh"})],
        "npu_gelu_mul": [Call((wide,))],
        "npu_fast_gelu": [Call((x,))],
        "npu_silu": [Call((x,))],
        "npu_clipped_swiglu": [Call((wide,)), Call((wide,), {"interleaved": False})],
        "npu_rotary_mul": [Call((heads, *by_head)), Call((heads, *by_head, "interleave"))],
        "npu_interleave_rope": [Call((heads.transpose(1, 2).contiguous(), *(t.transpose(1, 2) for t in by_head)))],
        "npu_dynamic_quant": [Call((x,)), Call((x.bfloat16(),), {"smooth_scales": gamma.bfloat16()})],
        "npu_dynamic_quant_asymmetric": [Call((x,))],
        "npu_quantize": [Call((x, r.scales(128), torch.zeros(128), _QINT8, -1, False))],
        "npu_trans_quant_param": [Call((r.scales(64),))],
        "npu_quant_matmul": [
            Call((r.int8(8, 128), weight, r.scales(64)), {"output_dtype": _BFLOAT16}),
            Call((r.int8(8, 128), weight, r.scales(64)), {"output_dtype": _BFLOAT16, "pertoken_scale": r.scales(8)}),
        ],
        "npu_quant_matmul_dequant": [Call((x, r.int8(64, 128), r.scales(64)))],
        "npu_weight_quant_batchmatmul": [Call((x, weight, r.scales(64).half()))],
        "npu_transpose_batchmatmul": [Call((r.floats(4, 8, 128), r.floats(4, 128, 64)))],
        "npu_linear": [Call((x, r.floats(64, 128), r.floats(64)))],
        "npu_grouped_matmul": [
            Call(
                ([x], [r.floats(4, 128, 64)]),
                {"group_list": torch.tensor([2, 2, 5, 8]), "split_item": 3, "group_type": 0},
            )
        ],
        "npu_moe_gating_top_k": [
            Call((x, 4), {"k_group": 4, "group_count": 8, "group_select_mode": 1, "norm_type": 1}, (2,)),
            Call((x.float(), 8), {}, (2,)),
        ],
        "npu_moe_gating_top_k_softmax": [Call((x,), {"k": 4})],
        "npu_moe_init_routing": [Call((r.floats(16, 128), rows, experts, 16))],
        "npu_moe_compute_expert_tokens": [Call((experts.flatten().sort().values, 8))],
        "npu_moe_token_permute": [Call((r.floats(16, 128), experts))],
        "npu_top_k_top_p": [
            Call(
                (r.floats(4, 256, dtype=torch.float32), torch.full((4,), 0.9), torch.full((4,), 40, dtype=torch.int32))
            )
        ],
        "npu_scatter_nd_update": [Call((x, torch.tensor([[5], [0]]), r.floats(2, 128)))],
        "npu_gather_sparse_index": [Call((x, r.numbers(8, 3, 2, dtype=torch.int64)))],
        "npu_dequant_bias": [
            Call((r.numbers(999, 8, 64), r.scales(64), r.scales(8), None), {"output_dtype": torch.float16})
        ],
        "npu_nsa_compress": [Call((r.floats(128, 4, 64), r.floats(32, 4), 32, 16), {"actual_seq_len": [80, 128]})],
        "npu_batch_gather_matmul_": [
            Call((x, r.floats(8, 64), r.floats(2, 1, 128, 16), r.numbers(2, 8), r.floats(2, 1, 16, 64)), {"scale": 0.5})
        ],
    }
