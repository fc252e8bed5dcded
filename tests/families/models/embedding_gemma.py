"""EmbeddingGemma: Gemma 3's text model without a head, with attention to all tokens."""

from typing import Any

from tests.families.models.bert import encoder
from tests.families.models.gemma import GEMMA3

EMBEDDING_GEMMA: dict[str, Any] = {
    **GEMMA3,
    "architectures": ["Gemma3TextModel"],
    "_sliding_window_pattern": 6,
    "sliding_window": 6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
    "use_bidirectional_attention": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}

CASES = (
    encoder("embedding-gemma", EMBEDDING_GEMMA, tokenizer="gemma"),
    encoder(
        "embedding-gemma-ropes",
        {
            **{key: value for key, value in EMBEDDING_GEMMA.items() if not key.startswith("rope")},
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 2e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
            },
        },
        tokenizer="gemma",
    ),
)
