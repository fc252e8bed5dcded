"""Apertus: an activation with numbers of its own in each layer."""

from typing import Any

from tests.families.models.breadth2 import LLAMA3
from tests.families.models.case import VOCAB, Case

APERTUS: dict[str, Any] = {
    "architectures": ["ApertusForCausalLM"],
    "model_type": "apertus",
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "xielu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "post_norm": False,
    "qk_norm": True,
    "rms_norm_eps": 1e-5,
    "rope_scaling": LLAMA3,
    "rope_theta": 12000000,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
}

CASES = (
    Case("apertus", APERTUS, newest=True),
    Case(
        "apertus-plain-rope",
        {
            **APERTUS,
            "rope_scaling": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        newest=True,
    ),
)
