"""ModernBERT: rotary positions with two bases, a window in most layers, a gated feed-forward."""

from typing import Any

from tests.families.models.bert import encoder
from tests.families.models.case import VOCAB

MODERNBERT: dict[str, Any] = {
    "model_type": "modernbert",
    "attention_bias": False,
    "bos_token_id": 1,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_pooling": "mean",
    "cls_token_id": 1,
    "decoder_bias": True,
    "eos_token_id": 2,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "layer_norm_eps": 1e-05,
    "local_attention": 8,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "mlp_bias": False,
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "pad_token_id": 3,
    "position_embedding_type": "absolute",
    "sep_token_id": 2,
    "tie_word_embeddings": True,
    "vocab_size": VOCAB,
}
BYTE_LEVEL = {"tokenizer": "smollm", "pre": "smollm"}
_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}

CASES = (
    encoder("modernbert", MODERNBERT, **BYTE_LEVEL),
    encoder(
        "modernbert-masked",
        {**MODERNBERT, "decoder_bias": False, "architectures": ["ModernBertForMaskedLM"]},
        "AutoModelForMaskedLM",
        **BYTE_LEVEL,
    ),
    # as transformers 5 writes it; llama.cpp refuses the converter's file, which lacks the epsilon
    encoder(
        "modernbert-silu",
        {
            **{
                key: value
                for key, value in MODERNBERT.items()
                if not key.startswith(("global", "local_rope", "layer_norm"))
            },
            "hidden_activation": "silu",
            "layer_types": [
                "full_attention",
                "sliding_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
            ],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 80000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
        differs=("modern-bert.attention.layer_norm_epsilon",),
        **BYTE_LEVEL,
    ),
    encoder(
        "modernbert-reranker",
        {**MODERNBERT, **_LABEL},
        "AutoModelForSequenceClassification",
        # without it llama.cpp gives no scores by default
        differs=("modern-bert.pooling_type",),
        **BYTE_LEVEL,
    ),
)
