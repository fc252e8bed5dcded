"""Nanbeige: Llama's layers, which run three times, twice without the norm between, and once.

transformers has no class of it; the oracle is its Llama with the layers repeated.
"""

from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors

THREE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_loops": 3,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "skip_loop_final_norm": False,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
}
SKIPPING: dict[str, Any] = {**THREE, "num_loops": 2, "skip_loop_final_norm": True, "tie_word_embeddings": True}
ONCE: dict[str, Any] = {key: value for key, value in THREE.items() if key not in ("num_loops", "skip_loop_final_norm")}


def _published(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    return {**config, "architectures": ["NanbeigeForCausalLM"], "model_type": "nanbeige"}, tensors


CASES = (
    Case("nanbeige", THREE, _published, "run_again", newest=True, forward=False, seed=3),
    Case("nanbeige-no-norm", SKIPPING, _published, "run_again", newest=True, forward=False, seed=1),
    Case("nanbeige-once", ONCE, _published, newest=True, seed=2),
)
