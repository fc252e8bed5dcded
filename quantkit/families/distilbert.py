"""DistilBERT: BERT with half of the layers, without token types, under names of its own.

Shape of the GGUF: llama.cpp's `bert` architecture (src/models/bert.cpp). Its classifier has a ReLU after the first
matrix, and llama.cpp's graph has tanh there, so a classifier is refused.
"""

from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.encoder import (
    ENCODER_ROLES,
    as_encoder,
    encoder_cautions,
    encoder_dimensions,
    encoder_keys,
)
from quantkit.families.base.family import Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.refusals import GELU, only
from quantkit.families.base.traits import Traits
from quantkit.families.bert import MASKED_HEAD, POSITION_NUMBERS
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import LAYER_NORM

# transformers' DistilBertConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "distilbert": {
        "vocab_size": 30522,
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "activation": "gelu",
        "max_position_embeddings": 512,
        "sinusoidal_pos_embds": False,
        "pad_token_id": 0,
    }
}
# not in config.json; the model's code has it
_EPS = 1e-12

_AT, _TO = "transformer.layer.{layer}", "blk.{layer}"
_LINEARS = (
    ("attention.q_lin", "attn_q", ("hidden", "hidden")),
    ("attention.k_lin", "attn_k", ("hidden", "hidden")),
    ("attention.v_lin", "attn_v", ("hidden", "hidden")),
    ("attention.out_lin", "attn_output", ("hidden", "hidden")),
    ("ffn.lin1", "ffn_up", ("ffn", "hidden")),
    ("ffn.lin2", "ffn_down", ("hidden", "ffn")),
)
_NORMS = (
    ("embeddings.LayerNorm", "token_embd_norm"),
    (f"{_AT}.sa_layer_norm", f"{_TO}.attn_output_norm"),
    (f"{_AT}.output_layer_norm", f"{_TO}.layer_output_norm"),
)
RULES = (
    Rule("embeddings.word_embeddings.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("embeddings.position_embeddings.weight", "position_embd.weight", ("context", "hidden")),
    *(
        Rule(f"{name}.{kind}", f"{target}.{kind}", ("hidden",))
        for name, target in _NORMS
        for kind in ("weight", "bias")
    ),
    *(Rule(f"{_AT}.{name}.weight", f"{_TO}.{target}.weight", shape) for name, target, shape in _LINEARS),
    *(Rule(f"{_AT}.{name}.bias", f"{_TO}.{target}.bias", shape[:1]) for name, target, shape in _LINEARS),
)


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """The sizes under their usual names; refuse a classifier, and activations that llama.cpp does not run."""
    only(config, "activation", *GELU, family="DistilBERT")
    if str(config["architectures"][0]).endswith("ForSequenceClassification"):
        raise UnsupportedError(
            "config.json: DistilBertForSequenceClassification has a ReLU in its classifier, but llama.cpp runs tanh; a"
            " GGUF cannot express this classifier"
        )
    as_encoder(config, "DistilBertModel")
    return {
        **config,
        "hidden_size": size(config, "dim"),
        "num_hidden_layers": size(config, "n_layers"),
        "num_attention_heads": size(config, "n_heads"),
        "intermediate_size": size(config, "hidden_dim"),
        "layer_norm_eps": _EPS,
    }


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The encoder's keys; the converter writes the epsilon first."""
    eps = f"{arch}.attention.layer_norm_epsilon"
    whole = encoder_keys(arch, sizes)
    return [
        *(key for key in whole if key.name == eps),
        *(key for key in whole if key.name != eps),
    ]


FORWARD = Architecture(
    base="",
    embedding="embeddings.word_embeddings",
    embedding_norm="embeddings.LayerNorm",
    positions="embeddings.position_embeddings",
    layer="transformer.layer.{}.",
    norm=LAYER_NORM,
    attention_norm=None,
    feed_norm=None,
    sum_norms=("sa_layer_norm", "output_layer_norm"),
    attention=Attention(
        causal=False,
        at="attention.",
        separate=("q_lin", "k_lin", "v_lin"),
        out="out_lin",
        rope=lambda _config, _layer: None,
    ),
    feed=FeedForward(
        at="ffn.",
        gate=None,
        up="lin1",
        down="lin2",
        inner=lambda config: int(config["hidden_dim"]),
        activation=("activation",),
        default_activation="gelu",
    ),
    last_norm="",
    head="",
    unpacked=lambda _: "loaders of AWQ and GPTQ folders run decoders, and this model is an encoder",
)

FAMILY = Family(
    name="DistilBERT",
    models="DistilBERT, and sentence encoders made of it",
    architectures=("DistilBertModel", "DistilBertForMaskedLM", "DistilBertForSequenceClassification"),
    gguf_arch="bert",
    rules=RULES,
    keys=keys,
    defaults=DEFAULTS,
    prepare=prepare,
    rename=((r"^distilbert\.", ""),),
    dropped=(Dropped(r"vocab_.*", MASKED_HEAD), POSITION_NUMBERS),
    dimensions=encoder_dimensions,
    cautions=encoder_cautions,
    # a checkpoint stores sinusoidal positions too
    no_effect=("qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds"),
    forward={"DistilBertModel": FORWARD},
    traits=Traits(encoder=True, positions="learned", layer_norm=True),
    token_roles=ENCODER_ROLES,
)
