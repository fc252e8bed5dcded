"""StableLM, GLM-4, SmolLM3 and Phi: small models with shapes of their own."""

from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors

BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
# some config classes look up their token ids in the vocabulary
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}

STABLELM = {**BASE, "model_type": "stablelm", "partial_rotary_factor": 0.25, "bos_token_id": 1, "eos_token_id": 2}
GLM4 = {**BASE, **IDS, "model_type": "glm4", "head_dim": 32}
SMOLLM3 = {**BASE, **IDS, "model_type": "smollm3", "num_hidden_layers": 5}
PHI3 = {**BASE, **IDS, "model_type": "phi3"}


def publish_epoch(native: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """StableLM as its first code had it: other names in the config, the same tensors."""
    config = {key: value for key, value in native.items() if key not in ("layer_norm_eps", "partial_rotary_factor")}
    return {
        **config,
        "architectures": ["StableLMEpochForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_stablelm_epoch.StableLMEpochForCausalLM"},
        "model_type": "stablelm_epoch",
        "norm_eps": native["layer_norm_eps"],
        "rope_pct": native["partial_rotary_factor"],
    }, tensors


def factors(count: int, step: float) -> list[float]:
    return [1.0 + step * index for index in range(count)]


LONGROPE = {"type": "longrope", "short_factor": factors(8, 0.05), "long_factor": factors(8, 0.7)}
PARTIAL = {"type": "longrope", "short_factor": factors(6, 0.05), "long_factor": factors(6, 0.7)}

CASES = (
    Case("stablelm-3b", {**STABLELM, "num_key_value_heads": 4}),
    Case("stablelm2-1.6b", {**STABLELM, "use_qkv_bias": True}, publish_epoch),
    # llama.cpp's converter gathers the norms of the heads and then loses them ("Unprocessed norms")
    Case("stablelm2-12b", {**STABLELM, "qk_layernorm": True, "use_parallel_residual": True}, converter=False),
    # llama.cpp's converter forgets the base and the scale
    Case(
        "stablelm-scaled",
        {**STABLELM, "rope_theta": 50000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        converter=False,
        seed=2,
    ),
    Case("glm4", {**GLM4, "attention_bias": True}, seed=1, tokenizer="glm"),
    Case("glm4-tied-no-biases", {**GLM4, "attention_bias": False, "tie_word_embeddings": True}, tokenizer="glm"),
    Case(
        "glm4-yarn",
        {
            **GLM4,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        },
        tokenizer="glm",
    ),
    Case("smollm3", {**SMOLLM3, "tie_word_embeddings": True}),
    Case("smollm3-untied", SMOLLM3),
    # not by its number: llama.cpp looks for Phi-3's own tokens in whatever is called phi3 or phi-3
    Case("phi-4k", {**PHI3, "sliding_window": 100}, tokenizer="few-letters"),
    # llama.cpp chooses the table by the context asked for (256 at least), transformers by the text's 16 tokens
    Case(
        "phi-128k-short",
        {**PHI3, "original_max_position_embeddings": 256, "rope_scaling": LONGROPE},
        tokenizer="few-letters",
    ),
    Case(
        "phi-128k-long",
        {**PHI3, "original_max_position_embeddings": 12, "rope_scaling": LONGROPE},
        tokenizer="few-letters",
    ),
    Case(
        "phi4-mini",
        {
            **PHI3,
            "original_max_position_embeddings": 12,
            "partial_rotary_factor": 0.75,
            "rope_scaling": PARTIAL,
            "tie_word_embeddings": True,
        },
        tokenizer="few-letters",
    ),
    Case("phi4", {**PHI3, "original_max_position_embeddings": 512, "rope_theta": 250000.0}, tokenizer="few-letters"),
)
