"""Published sizes of models that transformers has no class for, or whose class has other sizes by default."""

from typing import Any

from tests.families.expected import expected
from tests.families.published import MISSION

JAIS_13B = {
    "architectures": ["JAISLMHeadModel"],
    "model_type": "jais",
    "activation_function": "swiglu",
    "embeddings_scale": 14.6,
    "n_embd": 5120,
    "n_head": 40,
    "n_inner": 13653,
    "n_layer": 40,
    "n_positions": 2048,
    "position_embedding_type": "alibi",
    "scale_qk_dot_by_d": True,
    "vocab_size": 84992,
    "width_scale": 0.111,
}
_NAS_LAYERS = ((8, False, 5.25), (8, False, 1.3125), (16, False, 2.625), (None, True, 5.25), (None, False, 0.5))
NEMOTRON_NAS = {
    "architectures": ["DeciLMForCausalLM"],
    "model_type": "nemotron-nas",
    "block_configs": [
        {
            "attention": {"n_heads_in_group": group, "replace_with_linear": linear},
            "ffn": {"ffn_mult": factor, "replace_with_linear": False},
        }
        for group, linear, factor in (_NAS_LAYERS[layer % 5] for layer in range(80))
    ],
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128256,
}


def kimi_k3(experts: int) -> dict[str, Any]:
    """Kimi K3 with some of its 896 experts, whose number changes no type."""
    known = expected("kimi-k3").config
    full = [*range(4, 93, 4), 93]
    nested = {
        **known["text_config"]["linear_attn_config"],
        "full_attn_layers": full,
        "head_dim": 128,
        "kda_layers": sorted(set(range(1, 94)) - set(full)),
        "num_heads": 96,
    }
    text = {
        **known["text_config"],
        **sizes(7168, 33792, 93, 96),
        "attn_res_block_size": 12,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "vocab_size": 163840,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "num_key_value_heads": 96,
        "moe_intermediate_size": 3072,
        "routed_expert_hidden_size": 3584,
        "num_experts": experts,
        "num_experts_per_token": 16,
        "linear_attn_config": nested,
    }
    return {**known, "text_config": text}


def sizes(hidden: int, ffn: int, layers: int, heads: int) -> dict[str, int]:
    """The widths and numbers that most models state."""
    return {"hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads}


def of_size(case: str, hidden: int, ffn: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    """The config of a tiny model with the sizes of a published one."""
    return {**expected(case).config, **sizes(hidden, ffn, layers, heads), **more}


def of_size_t5(case: str, hidden: int, ffn: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    """The config of a tiny T5 with the sizes of a published one."""
    own = {"d_model": hidden, "d_ff": ffn, "d_kv": 64, "num_layers": layers, "num_heads": heads}
    return {**expected(case).config, **own, "relative_attention_num_buckets": 32, "vocab_size": 32128, **more}


_STEP_LAYERS = [("full" if layer % 4 == 0 else "sliding") + "_attention" for layer in range(48)]
_M3_LAYERS = [0] * 3 + [1] * 57

WITHOUT_CLASS = {
    "Jais 13B": JAIS_13B,
    "Nemotron-NAS": NEMOTRON_NAS,
    **{model.name: dict(model.config) for model in MISSION if model.name in ("Baichuan-7B", "BlossomLM Qwen-14B")},
    "ChatGLM3-6B": {
        **of_size("chatglm3", 4096, 13696, 28, 32, ffn_hidden_size=13696, num_layers=28, kv_channels=128),
        "multi_query_group_num": 2,
        "padded_vocab_size": 65024,
    },
    "llama-embed-nemotron-8b": of_size(
        "llama-embed-llama3", 4096, 14336, 32, 32, head_dim=128, num_key_value_heads=8, vocab_size=128256
    ),
    "DeepSeek-MoE 16B": of_size(
        *("deepseek-moe", 2048, 10944, 28, 16),
        num_key_value_heads=16,
        moe_intermediate_size=1408,
        n_routed_experts=64,
        n_shared_experts=2,
        num_experts_per_tok=6,
        vocab_size=102400,
    ),
    "DeepSeek-OCR 3B": {
        **expected("deepseek-ocr").config,
        "language_config": {
            **expected("deepseek-ocr").config["language_config"],
            **sizes(1280, 6848, 12, 10),
            "moe_intermediate_size": 896,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "num_key_value_heads": 10,
            "vocab_size": 129280,
        },
    },
    "InternLM2 7B": of_size("internlm2", 4096, 14336, 32, 32, num_key_value_heads=8, vocab_size=92544),
    "Orion 14B": of_size("orion", 5120, 15360, 40, 40, num_key_value_heads=40, vocab_size=84608),
    "XVERSE 7B": of_size("xverse", 4096, 11008, 32, 32, vocab_size=100534),
    "MiniCPM 2B": of_size("minicpm", 2304, 5760, 40, 36, num_key_value_heads=36, vocab_size=122753),
    "EXAONE 3.5 7.8B": of_size("exaone", 4096, 14336, 32, 32, num_layers=32, num_key_value_heads=8, head_dim=128)
    | {"vocab_size": 102400},
    "InternLM 7B": of_size("internlm", 4096, 11008, 32, 32, vocab_size=103168),
    "InternLM3 8B": of_size("internlm3", 4096, 10240, 48, 32, num_key_value_heads=2, head_dim=128, vocab_size=128512),
    "CodeShell 7B": expected("codeshell").config
    | {"n_embd": 4096, "n_head": 32, "n_layer": 42, "n_inner": 16384, "num_query_groups": 8, "vocab_size": 70144},
    "JinaBERT base": of_size("jina-bert", 768, 3072, 12, 12, vocab_size=30528),
    "EmbeddingGemma": of_size(
        *("embedding-gemma", 768, 1152, 24, 3),
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        layer_types=[("full" if layer % 6 == 5 else "sliding") + "_attention" for layer in range(24)],
        vocab_size=262144,
    ),
    "Ling-lite": of_size(
        *("bailingmoe", 2048, 5632, 28, 16),
        num_key_value_heads=4,
        head_dim=128,
        moe_intermediate_size=1408,
        num_experts=64,
        num_experts_per_tok=6,
        num_shared_experts=2,
        vocab_size=126464,
    ),
    "Ling-mini-2.0": of_size(
        *("bailingmoe2", 2048, 5120, 20, 16),
        num_key_value_heads=4,
        head_dim=128,
        moe_intermediate_size=512,
        moe_shared_expert_intermediate_size=512,
        num_experts=256,
        num_experts_per_tok=8,
        num_shared_experts=1,
        n_group=8,
        topk_group=4,
        vocab_size=157184,
    ),
    "Dots 3 Note": of_size(
        *("dots3", 5120, 13824, 46, 128),
        head_dim=256,
        index_head_dim=128,
        index_n_heads=64,
        kv_lora_rank=512,
        layer_types=[("full" if i < 2 or i % 4 == 1 else "sliding") + "_attention" for i in range(46)],
        moe_intermediate_size=1536,
        moe_shared_expert_intermediate_size=1536,
        n_routed_experts=256,
        num_experts_per_tok=8,
        num_key_value_heads=128,
        q_lora_rank=1024,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        swa_head_dim=256,
        swa_kv_lora_rank=1024,
        swa_num_attention_heads=64,
        swa_num_key_value_heads=64,
        swa_q_lora_rank=1024,
        swa_qk_nope_head_dim=192,
        swa_qk_rope_head_dim=64,
        swa_v_head_dim=128,
        v_head_dim=128,
        vocab_size=152064,
    ),
    "Ling-3.0-tiny": of_size(
        *("ling3", 1536, 4608, 24, 16),
        head_dim=128,
        kv_lora_rank=512,
        layer_group_size=4,
        layer_types=None,
        moe_intermediate_size=512,
        moe_shared_expert_intermediate_size=512,
        n_group=8,
        num_experts=128,
        num_experts_per_tok=8,
        num_key_value_heads=16,
        num_nextn_predict_layers=0,
        q_lora_rank=256,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        topk_group=4,
        v_head_dim=128,
        vocab_size=157184,
    ),
    "OpenELM 270M": expected("openelm").config
    | {
        "ffn_dim_divisor": 256,
        "ffn_multipliers": [round(0.5 + layer * 3.5 / 15, 2) for layer in range(16)],
        "head_dim": 64,
        "model_dim": 1280,
        "num_kv_heads": [3] * 5 + [4] * 7 + [5] * 4,
        "num_query_heads": [12] * 5 + [16] * 7 + [20] * 4,
        "num_transformer_layers": 16,
        "vocab_size": 32000,
    },
    # of the number of layers that llama.cpp calls 2B
    "PLaMo 3": of_size("plamo3", 2048, 8192, 24, 16, num_key_value_heads=2, head_dim=128, vocab_size=107520),
    "dots.ocr": of_size("dots-ocr", 1536, 8960, 28, 12, num_key_value_heads=2, vocab_size=151936),
    "KORMo 10B": of_size("kormo", 4096, 14336, 40, 32, num_key_value_heads=8, vocab_size=125184),
    "Maincoder 1B": of_size("maincoder", 1536, 4096, 32, 16, num_key_value_heads=4, head_dim=96, vocab_size=151936),
    "Maple 20B": of_size(
        *("maple", 2880, 2880, 24, 64),
        head_dim=64,
        layer_types=[("full" if layer % 4 == 3 else "sliding") + "_attention" for layer in range(24)],
        moe_intermediate_size=2880,
        num_experts=32,
        num_experts_per_tok=4,
        num_key_value_heads=8,
        vocab_size=201088,
    ),
    "Nanbeige 4.2 3B": of_size("nanbeige", 2560, 6656, 28, 20, head_dim=128, num_key_value_heads=4, vocab_size=166144),
    "openPangu 7B": of_size("pangu", 4096, 12800, 34, 32, num_key_value_heads=8, vocab_size=153376),
    "Qwen3-Omni 30B-A3B": {
        **expected("qwen3-omni").config,
        "thinker_config": {
            "text_config": {
                **expected("qwen3-omni").config["thinker_config"]["text_config"],
                **sizes(2048, 768, 48, 32),
                "head_dim": 128,
                "max_window_layers": 48,
                "moe_intermediate_size": 768,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "num_key_value_heads": 4,
                "vocab_size": 152064,
            }
        },
    },
    "Sarvam 30B": of_size(
        *("sarvam-moe", 4096, 8192, 19, 64),
        num_key_value_heads=4,
        head_dim=64,
        moe_intermediate_size=1024,
        num_experts=128,
        num_experts_per_tok=6,
        vocab_size=262144,
    ),
    "Kimi K3": kimi_k3(32),
    "Spark X2.5 1.7B": of_size(
        *("spark-x2.5", 2560, 8192, 28, 16),
        head_dim=256,
        layer_types=[("full" if layer % 4 == 3 else "sliding") + "_attention" for layer in range(28)],
        num_key_value_heads=4,
        vocab_size=131072,
    ),
    "SmallThinker 21B-A3B": of_size(
        *("smallthinker", 2560, 768, 52, 28),
        head_dim=128,
        moe_ffn_hidden_size=768,
        moe_layer_layout=[1] * 52,
        moe_num_active_primary_experts=6,
        moe_num_primary_experts=64,
        num_key_value_heads=4,
        rope_layout=[0, 1, 1, 1] * 13,
        sliding_window_layout=[0, 1, 1, 1] * 13,
        vocab_size=151936,
    ),
    "Step 3.5 Flash": of_size(
        *("step3.5", 4096, 11264, 45, 64),
        attention_other_setting={"num_attention_heads": 96, "num_attention_groups": 8, "head_dim": 128},
        head_dim=128,
        layer_types=_STEP_LAYERS,
        moe_intermediate_size=1280,
        moe_layers_enum=",".join(map(str, range(3, 45))),
        moe_num_experts=288,
        moe_top_k=8,
        num_attention_groups=8,
        num_nextn_predict_layers=3,
        partial_rotary_factors=[0.5 if kind == "full_attention" else 1.0 for kind in _STEP_LAYERS],
        rope_theta=[5000000.0 if kind == "full_attention" else 10000.0 for kind in _STEP_LAYERS],
        share_expert_dim=1280,
        vocab_size=128896,
    ),
    "MiniMax M3": of_size(
        *("minimax-m3-text", 6144, 3072, 60, 64),
        dense_intermediate_size=12288,
        head_dim=128,
        moe_layer_freq=_M3_LAYERS,
        num_experts_per_tok=4,
        num_key_value_heads=4,
        num_local_experts=128,
        rotary_dim=64,
        shared_intermediate_size=3072,
        sparse_attention_config={
            "sparse_attention_freq": _M3_LAYERS,
            "sparse_block_size": 128,
            "sparse_index_dim": 128,
            "sparse_local_block": 1,
            "sparse_num_index_heads": 4,
            "sparse_topk_blocks": 16,
        },
        vocab_size=200064,
    ),
    "Nemotron-H 8B": of_size(
        *("nemotron-h", 4096, 21504, 52, 32),
        head_dim=128,
        hybrid_override_pattern="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
        mamba_head_dim=64,
        mamba_num_heads=128,
        n_groups=8,
        num_key_value_heads=8,
        ssm_state_size=128,
        vocab_size=131072,
    ),
    "Nemotron 3 Nano 30B-A3B": of_size(
        *("nemotron-h-moe", 2688, 1856, 52, 32),
        head_dim=128,
        hybrid_override_pattern="MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        mamba_head_dim=64,
        mamba_num_heads=64,
        moe_intermediate_size=1856,
        moe_shared_expert_intermediate_size=3712,
        n_groups=8,
        n_routed_experts=128,
        num_experts_per_tok=6,
        ssm_state_size=128,
        vocab_size=131072,
    ),
    "Nomic Embed v2 MoE": expected("nomic-bert-moe").config
    | {"n_embd": 768, "n_head": 12, "n_inner": 3072, "n_layer": 12, "num_experts": 8, "vocab_size": 250048},
    "T5 large": of_size_t5("t5", 1024, 4096, 24, 16),
    "Flan-T5 small": of_size_t5("flan-t5", 512, 1024, 8, 6),
    "UMT5 XXL": of_size_t5("umt5", 4096, 10240, 24, 64, vocab_size=256384),
    "Encoder of T5 large": of_size_t5("t5-encoder", 1024, 4096, 24, 16),
    "Encoder of Flan-T5 XL": of_size_t5("flan-t5-encoder", 2048, 5120, 24, 32),
    "RWKV-6 1.6B": expected("rwkv6").config
    | {"hidden_size": 2048, "num_hidden_layers": 24, "vocab_size": 65536}
    | {"attention_hidden_size": 2048, "rescale_every": 6},
    "RWKV-7 1.5B": of_size(
        *("rwkv7", 2048, 8192, 24, 32),
        a_low_rank_dim=96,
        decay_low_rank_dim=96,
        gate_low_rank_dim=256,
        v_low_rank_dim=64,
        vocab_size=65536,
    ),
}
