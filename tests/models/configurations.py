"""Tiny models with the architectures of public ones: the configuration of transformers, and what the public executor's yaml changes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

_TOKENS = dict(
    vocab_size=256, pad_token_id=0, bos_token_id=1, eos_token_id=2, torch_dtype="bfloat16", tie_word_embeddings=False
)
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_YARN = dict(factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False, original_max_position_embeddings=4096)


_MLA = dict(
    hidden_size=128,
    intermediate_size=128,
    moe_intermediate_size=64,
    num_hidden_layers=3,
    num_nextn_predict_layers=0,
    num_attention_heads=4,
    num_key_value_heads=4,
    n_shared_experts=1,
    n_routed_experts=16,
    kv_lora_rank=512,
    q_lora_rank=256,
    qk_rope_head_dim=64,
    v_head_dim=128,
    qk_nope_head_dim=128,
    num_experts_per_tok=4,
    first_k_dense_replace=1,
    routed_scaling_factor=2.5,
    max_position_embeddings=256,
    topk_method="noaux_tc",
    scoring_func="sigmoid",
    norm_topk_prob=True,
)
_MLA_YARN = dict(
    rope_type="yarn",
    rope_theta=10000.0,
    factor=40.0,
    beta_fast=32,
    beta_slow=1,
    mscale=1.0,
    mscale_all_dim=1.0,
    original_max_position_embeddings=4096,
)
_DEEPSEEK_R1 = dict(_TOKENS, **_MLA, n_group=4, topk_group=2, rope_parameters=_MLA_YARN)


def _indexer(heads: int, rank: int) -> dict[str, tuple[int, ...]]:
    """The weights of the indexer in a layer."""
    shapes = {"wq_b.weight": (heads * 128, rank), "wk.weight": (128, 128), "weights_proj.weight": (heads, 128)}
    shapes.update({"k_norm.weight": (128,), "k_norm.bias": (128,)})
    return {f"self_attn.indexer.{name}": shape for name, shape in shapes.items()}


@dataclass(frozen=True)
class Model:
    """A tiny model. `executor`: its name in the public repository; `architecture`: the configuration class of transformers and its model's;
    `ranks`: the numbers of ranks that the repository runs it on; `modes`: what its configurations offer; `limit`: of the difference of
    logits from transformers, as a part of the largest one; `further`: weights of each layer that transformers' model has not, name and
    shape. deepseek_v3_2_exp and glm_5 have an indexer that chooses more keys than there are: their attention is that of deepseek_v3.
    `seed`: of the random weights; one with which no choice of an expert hangs on the rounding to bfloat16 (transformers' own model in
    bfloat16 is then within 0.01 of that in float32)."""

    executor: str
    architecture: tuple[str, str]
    sizes: dict[str, Any]
    ranks: tuple[int, ...]
    modes: tuple[str, ...]
    yaml: dict[str, Any] = field(default_factory=dict)
    limit: float = 0.02
    further: dict[str, tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0


def _tensor_parallel(world: int) -> dict[str, Any]:
    return dict(
        parallel_config=dict(attn_tp_size=world, embed_tp_size=world, lmhead_tp_size=world, dense_tp_size=world)
    )


MODELS = {
    "qwen3_8b": Model(
        "qwen3_8b",
        ("Qwen3Config", "Qwen3ForCausalLM"),
        dict(
            _TOKENS,
            hidden_size=128,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=256,
            rope_parameters=_ROPE,
        ),
        (1,),
        ("eager", "ge_graph", "npugraph_ex"),
    ),
    "qwen3_moe": Model(
        "qwen3_moe",
        ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
        dict(
            _TOKENS,
            hidden_size=128,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=256,
            moe_intermediate_size=64,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            rope_parameters=_ROPE,
        ),
        (2, 4),
        ("eager", "ge_graph", "npugraph_ex"),
    ),
    "gpt_oss": Model(
        "gpt_oss",
        ("GptOssConfig", "GptOssForCausalLM"),
        dict(
            _TOKENS,
            num_hidden_layers=2,
            num_local_experts=8,
            hidden_size=128,
            intermediate_size=64,
            head_dim=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=128,
            num_experts_per_tok=2,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "yarn", "rope_theta": 150000.0, **_YARN},
        ),
        (1, 2, 4),
        ("eager",),
    ),
    "deepseek_r1": Model(
        "deepseek_r1",
        ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
        _DEEPSEEK_R1,
        (2, 4),
        ("eager", "ge_graph", "npugraph_ex"),
        dict(model_config=dict(custom_params=dict(enable_mla_prolog=False, enable_multi_streams=False))),
    ),
    "deepseek_r1_prolog": Model(
        "deepseek_r1",
        ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
        _DEEPSEEK_R1,
        (2, 4),
        ("eager", "ge_graph", "npugraph_ex"),
        dict(model_config=dict(custom_params=dict(enable_mla_prolog=True, enable_multi_streams=True))),
    ),
    "kimi_k2_thinking": Model(
        "kimi_k2_thinking",
        ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
        dict(_TOKENS, **_MLA, n_group=1, topk_group=1, rope_parameters=_MLA_YARN),
        (2,),
        ("eager", "ge_graph", "npugraph_ex"),
        dict(model_config=dict(custom_params=dict(enable_mla_prolog=True, enable_multi_streams=False))),
        seed=2,
    ),
    "deepseek_v3_2_exp": Model(
        "deepseek_v3_2_exp",
        ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
        dict(
            _TOKENS,
            **{**_MLA, "q_lora_rank": 1536},  # its configuration takes no other
            n_group=4,
            topk_group=2,
            rope_parameters=_MLA_YARN,
            index_topk=2048,
            index_head_dim=128,
            index_n_heads=64,
        ),
        (2,),
        ("eager", "ge_graph", "npugraph_ex"),
        dict(model_config=dict(custom_params=dict(enable_multi_streams=False, enable_offload=False))),
        further=_indexer(64, 1536),
    ),
    "glm_5": Model(
        "glm_5",
        ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
        dict(
            _TOKENS,
            **_MLA,
            n_group=1,
            topk_group=1,
            rope_parameters=_ROPE,
            mlp_layer_types=["dense", "sparse", "sparse"],
            moe_layer_freq=1,
            index_topk=2048,
            index_head_dim=128,
            index_n_heads=32,
        ),
        (2,),
        ("eager", "ge_graph", "npugraph_ex"),
        dict(model_config=dict(custom_params=dict(enable_multi_streams=False, moe_chunk_max_len=65536))),
        further=_indexer(32, 256),
        seed=17,
    ),
    "longcat_flash": Model(
        "longcat_flash",
        ("LongcatFlashConfig", "LongcatFlashForCausalLM"),
        dict(
            _TOKENS,
            hidden_size=128,
            ffn_hidden_size=128,
            expert_ffn_hidden_size=64,
            num_layers=2,
            num_hidden_layers=4,
            num_attention_heads=4,
            n_routed_experts=16,
            zero_expert_num=8,
            zero_expert_type="identity",
            moe_topk=4,
            routed_scaling_factor=1.0,
            kv_lora_rank=512,
            q_lora_rank=256,
            qk_rope_head_dim=64,
            v_head_dim=128,
            qk_nope_head_dim=128,
            num_nextn_predict_layers=0,
            max_position_embeddings=256,
            rope_parameters=_ROPE,
        ),
        (2, 4),
        ("eager", "ge_graph", "npugraph_ex"),
        dict(
            model_config=dict(
                custom_params=dict(
                    enable_mla_prolog=True,
                    enable_multi_streams=0,
                    enable_prefetch=False,
                    enable_superkernel=False,
                    moe_chunk_max_len=1024,
                )
            )
        ),
        seed=5,
    ),
}


def yaml_changes(model: Model, world: int, mode: str) -> dict[str, Any]:
    """The changes of the executor's yaml for a number of ranks and a mode."""
    changes: dict[str, Any] = copy.deepcopy(model.yaml)
    if mode == "eager" and "model_config" in changes:  # the executor offers streams in graphs alone
        changes["model_config"]["custom_params"].pop("enable_multi_streams", None)
    if model.executor == "qwen3_8b":
        changes.update(_tensor_parallel(world))
    if model.executor == "gpt_oss":
        changes["parallel_config"] = dict(attn_tp_size=world, moe_tp_size=world, lmhead_tp_size=world)
    return changes
