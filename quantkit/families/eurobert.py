"""EuroBERT: Llama's graph with attention to all tokens, and no head.

Shape of the GGUF: llama.cpp's `eurobert` architecture (src/models/eurobert.cpp), which has no biases and no rope
scaling.
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.encoder import as_encoder, encoder_cautions
from quantkit.families.base.family import Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.keys import base_keys
from quantkit.families.base.pooling import pooling_keys
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.families.qwen2 import NORMS, PLAIN_MLP, PROJECTIONS
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.tokenizer.roles import TokenRoles

RULES = (
    *(replace(rule, source=rule.source.removeprefix("model.")) for rule in (*NORMS, *PROJECTIONS, *PLAIN_MLP)),
    Rule("embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("norm.weight", "output_norm.weight", ("hidden",)),
)

# transformers' EuroBertConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "eurobert": {
        "attention_bias": False,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "num_key_value_heads": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="EuroBERT")
    only(config, "attention_bias", False, family="EuroBERT")
    only(config, "mlp_bias", False, family="EuroBERT")
    as_encoder(config, "EuroBertModel")
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.attention.causal", "bool", False),
        Key(f"{arch}.rope.scaling.type", "str", "none"),
        *pooling_keys(arch, sizes),
    ]


FORWARD = Architecture(
    base="",
    head="",
    attention=Attention(causal=False),
    unpacked=lambda _: "loaders of AWQ and GPTQ folders run decoders, and this model is an encoder",
)

FAMILY = Family(
    name="EuroBERT",
    models="EuroBERT 210M/610M/2.1B, and sentence encoders made of it, jina-embeddings-v5-text-nano",
    architectures=("EuroBertModel", "EuroBertForMaskedLM", "JinaEmbeddingsV5Model"),
    gguf_arch="eurobert",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    rename=((r"^model\.", ""),),
    dropped=(Dropped(r"lm_head\..*", "they predict masked tokens; the GGUF gives embeddings"),),
    cautions=encoder_cautions,
    rope_kinds=("default",),
    no_effect=("classifier_pooling", "mask_token_id"),
    forward=dict.fromkeys(("EuroBertModel", "JinaEmbeddingsV5Model"), FORWARD),
    traits=Traits(causal=False, encoder=True),
    token_roles=TokenRoles(adds={"bos": False}, adds_first=True),
)
