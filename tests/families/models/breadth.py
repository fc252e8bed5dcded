"""Older dense families that many checkpoints still use: Cohere, Phi-2, GPT-NeoX, Nemotron, Arcee."""

from typing import Any

from tests.families.models.case import VOCAB, Case

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
COHERE = {**SIZES, "model_type": "cohere", "num_key_value_heads": 2, "pad_token_id": 0, "layer_norm_eps": 1e-5}
COHERE2 = {
    **COHERE,
    "model_type": "cohere2",
    "head_dim": 16,
    "num_hidden_layers": 5,
    "order_of_interleaved_layers": "local_attn_first",
    "rope_theta": 50000.0,
    "rotary_pct": 1.0,
    "sliding_window": 5,
    "sliding_window_pattern": 4,
    "logit_scale": 0.25,
}
PHI = {**SIZES, "model_type": "phi", "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "rope_theta": 10000.0}
NEOX = {
    **SIZES,
    "model_type": "gpt_neox",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
}
NEMOTRON = {
    **SIZES,
    "model_type": "nemotron",
    "num_key_value_heads": 2,
    "norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0,
    "hidden_act": "relu2",
    "head_dim": 16,
}
ARCEE = {
    **SIZES,
    "model_type": "arcee",
    "num_key_value_heads": 2,
    "hidden_act": "relu2",
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}
YARN = {
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "rope_type": "yarn",
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}


def newest(name: str, config: dict[str, Any], **more: Any) -> Case:
    return Case(name, config, newest=True, **more)


CASES = (
    newest("cohere", {**COHERE, "logit_scale": 0.5, "rope_theta": 8e6, "model_max_length": 1024}),
    newest(
        "cohere-plus", {**COHERE, "hidden_size": 32, "num_hidden_layers": 64, "rope_theta": 7.5e7, "use_qk_norm": True}
    ),
    newest("cohere2", COHERE2),
    # llama.cpp adds no BOS to byte-level BPE without this key either
    newest(
        "phi",
        {**PHI, "intermediate_size": 256, "partial_rotary_factor": 0.5},
        differs=("tokenizer.ggml.add_bos_token",),
    ),
    Case("gptneox", NEOX),
    Case("gptneox-serial", {**NEOX, "use_parallel_residual": False, "rotary_pct": 0.5}),
    # the converter fixes the ids of Nemotron's own tokenizer
    newest(
        "nemotron",
        NEMOTRON,
        tokenizer="few-letters",
        differs=("tokenizer.ggml.padding_token_id", "tokenizer.ggml.unknown_token_id"),
    ),
    newest("arcee", {**ARCEE, "tie_word_embeddings": False}),
    newest("arcee-yarn", {**ARCEE, "rope_scaling": YARN, "tie_word_embeddings": True}),
)
