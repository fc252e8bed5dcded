"""BERT and the sentence encoders and classifiers made of it: learned positions, norms after each sum, full attention.

Shape of the GGUF: llama.cpp's `bert` architecture (src/models/bert.cpp), which adds the first token type to every
token. A classifier has BERT's pooler as `cls` and its own matrix as `cls.output`. llama.cpp's converter leaves the
pooler out, and its files then give other scores.
"""

from typing import Any

from quantkit.families.base.encoder import (
    ENCODER_ROLES,
    as_encoder,
    encoder_cautions,
    encoder_dimensions,
    encoder_keys,
    has_classifier,
    pooler_left_out,
)
from quantkit.families.base.family import Dropped, Family, Rule
from quantkit.families.base.refusals import GELU, only
from quantkit.families.base.traits import Traits
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import LAYER_NORM

# transformers' BertConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
}

_AT, _TO = "encoder.layer.{layer}", "blk.{layer}"
_LINEARS = (
    ("attention.self.query", "attn_q", ("hidden", "hidden")),
    ("attention.self.key", "attn_k", ("hidden", "hidden")),
    ("attention.self.value", "attn_v", ("hidden", "hidden")),
    ("attention.output.dense", "attn_output", ("hidden", "hidden")),
    ("intermediate.dense", "ffn_up", ("ffn", "hidden")),
    ("output.dense", "ffn_down", ("hidden", "ffn")),
)
_NORMS = (
    ("embeddings.LayerNorm", "token_embd_norm"),
    (f"{_AT}.attention.output.LayerNorm", f"{_TO}.attn_output_norm"),
    (f"{_AT}.output.LayerNorm", f"{_TO}.layer_output_norm"),
)
EMBEDDINGS = (
    Rule("embeddings.word_embeddings.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("embeddings.token_type_embeddings.weight", "token_types.weight", ("types", "hidden"), required=False),
)
POSITIONS = Rule("embeddings.position_embeddings.weight", "position_embd.weight", ("context", "hidden"))
LAYERS = (
    *(
        Rule(f"{name}.{kind}", f"{target}.{kind}", ("hidden",))
        for name, target in _NORMS
        for kind in ("weight", "bias")
    ),
    *(Rule(f"{_AT}.{name}.weight", f"{_TO}.{target}.weight", shape) for name, target, shape in _LINEARS),
    *(Rule(f"{_AT}.{name}.bias", f"{_TO}.{target}.bias", shape[:1]) for name, target, shape in _LINEARS),
)
CLASSIFIER = (
    Rule("pooler.dense.weight", "cls.weight", ("hidden", "hidden"), when=has_classifier),
    Rule("pooler.dense.bias", "cls.bias", ("hidden",), when=has_classifier),
    Rule("classifier.weight", "cls.output.weight", ("labels", "hidden"), when=has_classifier),
    Rule("classifier.bias", "cls.output.bias", ("labels",), when=has_classifier),
)
OLD_NAMES = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))
MASKED_HEAD = "they predict masked tokens; the GGUF gives embeddings"
POSITION_NUMBERS = Dropped(r"(.*\.)?embeddings\.(position_ids|token_type_ids)")


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph has built in otherwise; a classifier gives scores."""
    check(config, "BERT")
    as_encoder(config, "BertModel")
    return config


def check(config: dict[str, Any], family: str) -> None:
    """Refuse settings of BERT's kind of model that llama.cpp does not run."""
    only(config, "hidden_act", *GELU, family=family)
    only(config, "position_embedding_type", "absolute", family=family)
    only(config, "is_decoder", False, family=family)
    only(config, "add_cross_attention", False, family=family)


ATTENTION = Attention(
    causal=False,
    at="attention.",
    separate=("self.query", "self.key", "self.value"),
    out="output.dense",
    rope=lambda _config, _layer: None,
)

FORWARD = Architecture(
    base="",
    embedding="embeddings.word_embeddings",
    embedding_norm="embeddings.LayerNorm",
    positions="embeddings.position_embeddings",
    token_types="embeddings.token_type_embeddings",
    layer="encoder.layer.{}.",
    norm=LAYER_NORM,
    attention_norm=None,
    feed_norm=None,
    sum_norms=("attention.output.LayerNorm", "output.LayerNorm"),
    attention=ATTENTION,
    feed=FeedForward(at="", gate=None, up="intermediate.dense", down="output.dense", default_activation="gelu"),
    last_norm="",
    head="",
    unpacked=lambda _: "loaders of AWQ and GPTQ folders run decoders, and this model is an encoder",
)

FAMILY = Family(
    name="BERT",
    models="BERT; all-MiniLM, BGE, E5, GTE, mxbai, arctic-embed; ms-marco-MiniLM cross-encoders",
    architectures=("BertModel", "BertForMaskedLM", "BertForSequenceClassification"),
    gguf_arch="bert",
    rules=(*EMBEDDINGS, POSITIONS, *LAYERS, *CLASSIFIER),
    keys=encoder_keys,
    defaults=DEFAULTS,
    prepare=prepare,
    rename=((r"^bert\.", ""), *OLD_NAMES),
    dropped=(
        pooler_left_out(r"(bert\.)?pooler\..*"),
        Dropped(r"cls\.(predictions|seq_relationship)\..*", MASKED_HEAD),
        POSITION_NUMBERS,
    ),
    dimensions=encoder_dimensions,
    cautions=encoder_cautions,
    forward={"BertModel": FORWARD},
    traits=Traits(encoder=True, positions="learned", layer_norm=True),
    token_roles=ENCODER_ROLES,
)
