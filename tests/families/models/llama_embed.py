"""Llama-Embed-Nemotron: Llama 3 with attention to all tokens; transformers' EuroBERT is this graph."""

from typing import Any

from tests.families.models.bert import encoder
from tests.families.models.case import Tensors
from tests.families.models.eurobert import EUROBERT

_BYTE_LEVEL = {"tokenizer": "smollm", "pre": "smollm"}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# llama.cpp masks later tokens in the converter's file
_DIFFERS = ("llama-embed.attention.causal",)
_LEFT_OUT = ("clf_pooling", "mask_token_id", "classifier_pooling")


def _published(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """config.json of llama-embed-nemotron-8b; the tensors are those of a bare LlamaModel."""
    kept = {key: value for key, value in config.items() if key not in _LEFT_OUT}
    return {**kept, "architectures": ["LlamaBidirectionalModel"], "model_type": "llama_bidirec"}, tensors


CASES = (
    encoder("llama-embed", EUROBERT, publish=_published, raw_config=True, differs=_DIFFERS, **_BYTE_LEVEL),
    encoder(
        "llama-embed-llama3",
        {**{key: value for key, value in EUROBERT.items() if key != "rope_theta"}, "rope_parameters": _LLAMA3},
        publish=_published,
        raw_config=True,
        differs=_DIFFERS,
        **_BYTE_LEVEL,
    ),
)
