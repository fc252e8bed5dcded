"""Mixtral as transformers 5 holds it: the block is called mlp, and the experts are in one tensor."""

from typing import Any

from tests.families.models.case import VOCAB, Case
from tests.families.models.minimax_m2 import named_by_modules

MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "hidden_act": "silu",
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
}

CASES = (
    Case("mixtral-newest", MIXTRAL, newest=True),
    # the converter knows the published names only
    Case("mixtral-fused", MIXTRAL, publish=named_by_modules, newest=True, converter=False),
)
