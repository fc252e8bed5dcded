"""BERT and its relatives: encoders, whose results are hidden states."""

from typing import Any

from tests.families.models.case import VOCAB, Case

BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "hidden_act": "gelu",
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
}
RERANKER = {**BERT, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
EMOTIONS = {**BERT, "id2label": {"0": "joy", "1": "anger", "2": "fear"}}


def encoder(name: str, config: dict[str, Any], auto: str = "AutoModel", **settings: Any) -> Case:
    """A case of an encoder with BERT's tokenizer."""
    given = {"tokenizer": "wordpiece", "pre": "default", **settings}
    return Case(name, config, newest=True, auto=auto, encoder=True, **given)


CASES = (
    encoder("bert", BERT),
    encoder("bert-masked", {**BERT, "architectures": ["BertForMaskedLM"]}, "AutoModelForMaskedLM"),
    # llama.cpp's converter leaves out BERT's pooler, so its files give other scores
    encoder("bert-reranker", RERANKER, "AutoModelForSequenceClassification", converter=False),
    encoder("bert-three-labels", EMOTIONS, "AutoModelForSequenceClassification", converter=False),
)
