"""RoBERTa: BERT whose positions begin after the padding token, with a byte-level vocabulary.

Shape of the GGUF: llama.cpp's `bert` architecture (src/models/bert.cpp). The table of positions has rows that no text
reaches, up to that of the padding token; a GGUF leaves them out.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.errors import CheckpointError
from quantkit.families.base.encoder import (
    ENCODER_ROLES,
    as_encoder,
    encoder_cautions,
    encoder_dimensions,
    encoder_keys,
    has_classifier,
    pooler_left_out,
)
from quantkit.families.base.family import Dropped, Family, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.traits import Traits
from quantkit.families.bert import EMBEDDINGS, LAYERS, MASKED_HEAD, OLD_NAMES, POSITION_NUMBERS, check
from quantkit.families.bert import FORWARD as BERT
from quantkit.forward.config_keys import Config, given

# transformers' RobertaConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "roberta": {
        "vocab_size": 50265,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 1,
    }
}
_ROWS = "position_rows"
"""The name under which the config holds the rows of the whole table of positions."""


def first_position(config: Config) -> int:
    """The row of the table of positions for the first token."""
    return int(given(config, "pad_token_id", default=1)) + 1


def _used(sizes: Hyperparameters) -> Take:
    first = first_position(sizes.config)
    return Take(np.arange(first, first + (sizes.context or 0), dtype=np.int64))


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """The number of tokens that a text may have; refuse what llama.cpp's graph has built in otherwise."""
    check(config, "RoBERTa")
    as_encoder(config, "RobertaModel")
    if _ROWS in config:
        return config
    rows = size(config, "max_position_embeddings")
    if rows <= first_position(config):
        raise CheckpointError(
            f"config.json: max_position_embeddings {rows} leaves no position after that of pad_token_id"
            f" {first_position(config) - 1}; correct one of them"
        )
    return {**config, _ROWS: rows, "max_position_embeddings": rows - first_position(config)}


def dimensions(sizes: Hyperparameters) -> dict[str, int]:
    """The encoder's, and the rows of the whole table of positions."""
    return {**encoder_dimensions(sizes), _ROWS: size(sizes.config, _ROWS)}


POSITIONS = Rule("embeddings.position_embeddings.weight", "position_embd.weight", (_ROWS, "hidden"), take=_used)
CLASSIFIER = (
    Rule("classifier.dense.weight", "cls.weight", ("hidden", "hidden"), when=has_classifier),
    Rule("classifier.dense.bias", "cls.bias", ("hidden",), when=has_classifier),
    Rule("classifier.out_proj.weight", "cls.output.weight", ("labels", "hidden"), when=has_classifier),
    Rule("classifier.out_proj.bias", "cls.output.bias", ("labels",), when=has_classifier),
)

FORWARD = replace(BERT, first_position=first_position)

FAMILY = Family(
    name="RoBERTa",
    models="RoBERTa, all-roberta-large, stsb-roberta; cross-encoders made of it",
    architectures=("RobertaModel", "RobertaForMaskedLM", "RobertaForSequenceClassification"),
    gguf_arch="bert",
    rules=(*EMBEDDINGS, POSITIONS, *LAYERS, *CLASSIFIER),
    keys=encoder_keys,
    defaults=DEFAULTS,
    prepare=prepare,
    rename=((r"^roberta\.", ""), *OLD_NAMES),
    dropped=(pooler_left_out(r"(roberta\.)?pooler\..*"), Dropped(r"lm_head\..*", MASKED_HEAD), POSITION_NUMBERS),
    dimensions=dimensions,
    cautions=encoder_cautions,
    forward={"RobertaModel": FORWARD},
    traits=Traits(encoder=True, positions="learned", layer_norm=True),
    token_roles=ENCODER_ROLES,
)
