"""JinaBERT: BERT with ALiBi in place of learned positions and a gated feed-forward (jina-embeddings-v2).

Shape of the GGUF: llama.cpp's `jina-bert-v2` architecture (src/models/bert.cpp). The code models have norms of queries
and keys and a second norm after attention; quantkit refuses their tensors.
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.encoder import (
    ENCODER_ROLES,
    as_encoder,
    encoder_cautions,
    encoder_dimensions,
    encoder_keys,
    pooler_left_out,
)
from quantkit.families.base.family import Dropped, Family, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.refusals import GELU, only
from quantkit.families.base.traits import Traits
from quantkit.families.bert import ATTENTION, EMBEDDINGS, LAYERS, MASKED_HEAD, POSITION_NUMBERS
from quantkit.families.bert import DEFAULTS as BERT_DEFAULTS
from quantkit.families.bert import FORWARD as BERT
from quantkit.forward.description import FeedForward

# The published code's JinaBertConfig where it differs from BERT's.
DEFAULTS = {"bert": {**BERT_DEFAULTS["bert"], "feed_forward_type": "geglu"}}

_AT, _TO = "encoder.layer.{layer}", "blk.{layer}"
_NOT_OF_JINA = (f"{_AT}.intermediate.", f"{_AT}.output.")


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph has built in otherwise."""
    name = "JinaBERT"
    only(config, "hidden_act", *GELU, family=name)
    only(config, "position_embedding_type", "alibi", family=name)
    only(config, "feed_forward_type", "geglu", family=name)
    only(config, "is_decoder", False, family=name)
    only(config, "add_cross_attention", False, family=name)
    as_encoder(config, "JinaBertModel")
    return config


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    return {**encoder_dimensions(sizes), "gate_up": 2 * sizes.ffn}


FAMILY = Family(
    name="JinaBERT",
    models="jina-embeddings-v2-small-en, -base-en, -base-de, -base-es, -base-zh",
    architectures=("JinaBertModel", "JinaBertForMaskedLM"),
    gguf_arch="jina-bert-v2",
    rules=(
        *EMBEDDINGS,
        *(rule for rule in LAYERS if not rule.source.startswith(_NOT_OF_JINA)),
        Rule(f"{_AT}.mlp.gated_layers.weight", f"{_TO}.ffn_up.weight", ("gate_up", "hidden")),
        Rule(f"{_AT}.mlp.wo.weight", f"{_TO}.ffn_down.weight", ("hidden", "ffn")),
        Rule(f"{_AT}.mlp.wo.bias", f"{_TO}.ffn_down.bias", ("hidden",)),
        Rule(f"{_AT}.mlp.layernorm.weight", f"{_TO}.layer_output_norm.weight", ("hidden",)),
        Rule(f"{_AT}.mlp.layernorm.bias", f"{_TO}.layer_output_norm.bias", ("hidden",)),
    ),
    keys=encoder_keys,
    defaults=DEFAULTS,
    prepare=prepare,
    rename=((r"^bert\.", ""),),
    dropped=(pooler_left_out(r"(bert\.)?pooler\..*"), Dropped(r"cls\.predictions\..*", MASKED_HEAD), POSITION_NUMBERS),
    dimensions=_dimensions,
    cautions=encoder_cautions,
    forward={
        "JinaBertModel": replace(
            BERT,
            positions=None,
            sum_norms=("attention.output.LayerNorm", "mlp.layernorm"),
            attention=replace(ATTENTION, alibi=lambda _: True),
            feed=FeedForward(gate=None, fused="gated_layers", down="wo", default_activation="gelu"),
        )
    },
    traits=Traits(encoder=True, positions="alibi", layer_norm=True),
    token_roles=ENCODER_ROLES,
)
