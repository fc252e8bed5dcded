"""ChatGLM3 and GLM-4-9B-chat as their remote code has them; transformers' GLM computes the same."""

from typing import Any

import numpy as np

from tests.families.models.breadth2 import GLM
from tests.families.models.case import VOCAB, Case, Publish, Tensors

_NAMES = (
    ("model.layers.", "transformer.encoder.layers."),
    (".self_attn.o_proj.", ".self_attention.dense."),
    (".mlp.gate_up_proj.", ".mlp.dense_h_to_4h."),
    (".mlp.down_proj.", ".mlp.dense_4h_to_h."),
    ("model.embed_tokens.", "transformer.embedding.word_embeddings."),
    ("model.norm.", "transformer.encoder.final_layernorm."),
    ("lm_head.", "transformer.output_layer."),
)


def as_chatglm(architecture: str, **more: Any) -> Publish:
    def publish(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        published: Tensors = {"transformer.rotary_pos_emb.inv_freq": np.ones(4, np.float32)}
        for name, value in tensors.items():
            if any(f".self_attn.{part}_proj." in name for part in "qkv"):
                continue
            for old, new in _NAMES:
                name = name.replace(old, new)
            published[name] = value
        for layer in range(config["num_hidden_layers"]):
            at = f"model.layers.{layer}.self_attn"
            for kind in ("weight", "bias"):
                parts = [tensors[f"{at}.{part}_proj.{kind}"] for part in "qkv"]
                name = f"transformer.encoder.layers.{layer}.self_attention.query_key_value.{kind}"
                published[name] = np.concatenate(parts)
        return {
            "architectures": [architecture],
            "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
            "bos_token_id": config["bos_token_id"],
            "model_type": "chatglm",
            "add_bias_linear": False,
            "add_qkv_bias": True,
            "apply_residual_connection_post_layernorm": False,
            "eos_token_id": 2,
            "ffn_hidden_size": config["intermediate_size"],
            "hidden_size": config["hidden_size"],
            "kv_channels": config["head_dim"],
            "layernorm_epsilon": config["rms_norm_eps"],
            "multi_query_attention": True,
            "multi_query_group_num": config["num_key_value_heads"],
            "num_attention_heads": config["num_attention_heads"],
            "num_layers": config["num_hidden_layers"],
            "original_rope": True,
            "padded_vocab_size": VOCAB,
            "pad_token_id": 0,
            "post_layer_norm": True,
            "rmsnorm": True,
            "seq_length": 512,
            "tie_word_embeddings": False,
            **more,
        }, published

    return publish


CASES = (
    Case(
        "glm-4-chat",
        {**GLM, "rope_theta": 5e6},
        publish=as_chatglm("ChatGLMModel", rope_ratio=500),
        newest=True,
        tokenizer="glm",
        vocabulary=False,
    ),
    Case(
        "chatglm3",
        {**GLM, "rope_theta": 1e4, "rms_norm_eps": 1e-5},
        publish=as_chatglm("ChatGLMForConditionalGeneration"),
        newest=True,
        tokenizer="glm",
        vocabulary=False,
    ),
)
