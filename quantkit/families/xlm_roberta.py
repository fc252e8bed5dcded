"""XLM-RoBERTa and CamemBERT: RoBERTa with a unigram vocabulary.

Shape of the GGUF: llama.cpp's `bert` architecture (src/models/bert.cpp). llama.cpp's converter takes CamemBERT for
BERT, and its file then has the wrong positions.
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.encoder import as_encoder
from quantkit.families.roberta import DEFAULTS, FORWARD
from quantkit.families.roberta import FAMILY as ROBERTA
from quantkit.families.roberta import prepare as prepare_roberta

# transformers' XLMRobertaConfig and CamembertConfig.
_DEFAULTS = {**DEFAULTS["roberta"], "vocab_size": 30522}


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """As RoBERTa's; refuse adapters of tasks within the checkpoint (jina-embeddings-v3)."""
    if config.get("lora_adaptations"):
        raise UnsupportedError(
            "config.json: lora_adaptations names adapters of tasks, which a GGUF has as separate files; quantkit does"
            " not write them yet"
        )
    model = "Camembert" if str(config["architectures"][0]).startswith("Camembert") else "XLMRoberta"
    config = prepare_roberta(config)
    as_encoder(config, f"{model}Model")
    return config


_CLASSES = ("Model", "ForMaskedLM", "ForSequenceClassification")

FAMILY = replace(
    ROBERTA,
    name="XLM-RoBERTa",
    models="bge-m3, multilingual-e5, bge-reranker, XLM-RoBERTa, CamemBERT",
    architectures=tuple(f"{model}{ending}" for model in ("XLMRoberta", "Camembert") for ending in _CLASSES),
    defaults={"xlm-roberta": _DEFAULTS, "camembert": _DEFAULTS},
    prepare=prepare,
    forward={"XLMRobertaModel": FORWARD, "CamembertModel": FORWARD},
)
