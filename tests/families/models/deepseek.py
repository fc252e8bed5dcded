"""DeepSeek-V2 and V3: latent attention, queries compressed or not, groups of experts, a layer that predicts more."""

from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors, weight

BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "tie_word_embeddings": False,
}
V2 = {**BASE, "model_type": "deepseek_v2", "q_lora_rank": 20, "n_shared_experts": 2, "routed_scaling_factor": 1.5}
# known to llama.cpp by its 27 layers
LITE = {**V2, "q_lora_rank": None, "num_hidden_layers": 27, "n_group": 1, "topk_group": 1}
V3 = {**BASE, "model_type": "deepseek_v3", "q_lora_rank": 20, "n_group": 4, "topk_group": 2, "scoring_func": "sigmoid"}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1}


def with_another_token(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As V3 is published: after the layers one that predicts a token further, which nothing here runs."""
    extra, last = config["num_hidden_layers"], config["num_hidden_layers"] - 1
    result = dict(tensors)
    for name, value in tensors.items():
        if f".layers.{last}." in name:
            result[name.replace(f".layers.{last}.", f".layers.{extra}.")] = value
    hidden = config["hidden_size"]
    for name, shape in (("eh_proj", (hidden, 2 * hidden)), ("enorm", (hidden,)), ("shared_head.head", (VOCAB, hidden))):
        result[f"model.layers.{extra}.{name}.weight"] = weight(0, name, shape)
    return {**config, "num_nextn_predict_layers": 1}, result


CASES = (
    Case("deepseek-v2", {**V2, "n_group": 1, "topk_group": 1, "scoring_func": "softmax"}),
    Case("deepseek-v2-lite", LITE),
    Case(
        "deepseek-v2-yarn",
        {**V2, "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}},
        patch="scale_attention_by_yarn",
    ),
    Case("deepseek-v3", V3, publish=with_another_token),
    Case("deepseek-v3-yarn", {**V3, "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}}),
)
