"""Hunyuan, dense and mixture: norms after the rotation, rope with a fixed alpha or plain, experts in both layouts."""

from typing import Any

from tests.families.models.case import VOCAB, Case
from tests.families.models.glm4moe import fused

DENSE: dict[str, Any] = {
    "architectures": ["HunYuanDenseV1ForCausalLM"],
    "model_type": "hunyuan_v1_dense",
    "attention_bias": False,
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "head_dim": 32,
    "hidden_act": "silu",
    "intermediate_size": 96,
    "max_position_embeddings": 32768,
    "mlp_bias": False,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "alpha": 50.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "type": "dynamic",
    },
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "use_cla": False,
    "use_qk_norm": True,
    "bos_token_id": 0,
    "eod_token_id": 5,
    "eos_token_id": 2,
}
# the converter takes a scaled rope with heads of 128 values and an alpha of 1000 only
MOE: dict[str, Any] = {
    **DENSE,
    "architectures": ["HunYuanMoEV1ForCausalLM"],
    "model_type": "hunyuan_v1_moe",
    "hidden_size": 256,
    "head_dim": 128,
    "intermediate_size": 32,
    "moe_intermediate_size": [32, 32],
    "moe_layer_num_skipped": 0,
    "moe_topk": [3, 3],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts": 6,
    "num_hidden_layers": 2,
    "num_shared_expert": [1, 1],
    "rope_scaling": {**DENSE["rope_scaling"], "alpha": 1000.0},
    "use_mixed_mlp_moe": True,
}
PLAIN = {"hidden_size": 64, "head_dim": 32, "rope_scaling": None}

CASES = (
    Case("hunyuan-dense", DENSE, newest=True),
    Case("hunyuan-dense-plain-rope-untied", {**DENSE, "rope_scaling": None, "tie_word_embeddings": False}, newest=True),
    # the converter reads the vocabulary of the published tokenizer's own code
    Case("hunyuan-moe", MOE, newest=True, vocabulary=False),
    # the converter takes experts one by one only
    Case("hunyuan-moe-fused-plain-rope", {**MOE, **PLAIN, "moe_topk": 2}, publish=fused, newest=True, converter=False),
)
