"""Encoders that differ from BERT in names, positions or vocabulary."""

from tests.families.models.bert import BERT, encoder
from tests.families.models.case import VOCAB

DISTILBERT = {
    "model_type": "distilbert",
    "vocab_size": VOCAB,
    "dim": 64,
    "hidden_dim": 96,
    "n_heads": 4,
    "n_layers": 3,
    "activation": "gelu",
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ROBERTA = {
    **{key: value for key, value in BERT.items() if key != "position_embedding_type"},
    "model_type": "roberta",
    "max_position_embeddings": 66,
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
BYTE_LEVEL = {"tokenizer": "smollm", "pre": "smollm"}

CASES = (
    encoder("distilbert", DISTILBERT),
    encoder("distilbert-masked", {**DISTILBERT, "architectures": ["DistilBertForMaskedLM"]}, "AutoModelForMaskedLM"),
    encoder("roberta", ROBERTA, **BYTE_LEVEL),
    # the converter's file of a classifier has no pooling, so llama.cpp gives no scores of it by default
    encoder(
        "roberta-reranker",
        {**ROBERTA, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},
        "AutoModelForSequenceClassification",
        converter=False,
        **BYTE_LEVEL,
    ),
)
