"""EuroBERT: Llama without a head, with attention to all tokens; grouped heads, and a masked model's head left out."""

from typing import Any

from tests.families.models.bert import encoder
from tests.families.models.case import VOCAB

EUROBERT: dict[str, Any] = {
    "architectures": ["EuroBertModel"],
    "model_type": "eurobert",
    "attention_bias": False,
    "bos_token_id": 0,
    "clf_pooling": "late",
    "eos_token_id": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "mask_token_id": 4,
    "max_position_embeddings": 128,
    "mlp_bias": False,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 250000.0,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
}
_BYTE_LEVEL = {"tokenizer": "smollm", "pre": "smollm"}

CASES = (
    # transformers' class adds classifier_pooling "late", at which the converter stops
    encoder("eurobert", EUROBERT, raw_config=True, **_BYTE_LEVEL),
    encoder(
        "eurobert-jina-v5", {**EUROBERT, "architectures": ["JinaEmbeddingsV5Model"]}, raw_config=True, **_BYTE_LEVEL
    ),
    # llama.cpp's converter does not know the name
    encoder(
        "eurobert-masked",
        {**EUROBERT, "architectures": ["EuroBertForMaskedLM"], "num_key_value_heads": 4, "rope_theta": 10000.0},
        "AutoModelForMaskedLM",
        converter=False,
        **_BYTE_LEVEL,
    ),
)
