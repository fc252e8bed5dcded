"""Mistral Small 3.1 and later, Magistral, Devstral and Ministral 3: Llama's graph, without images.

Shape of the GGUF: llama.cpp's `mistral3` architecture (src/models/mistral3.cpp). Ministral 3 scales YaRN's attention by
`mscale_all_dim`, and queries by the logarithm of their position beyond the original context.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Dropped, Key
from quantkit.families.base.hyperparameters import Hyperparameters, number
from quantkit.families.base.multimodal import TEXT_PREFIXES, VISION, VISION_LEFT_OUT
from quantkit.families.base.refusals import SILU, only
from quantkit.families.llama import DEFAULTS, llama_keys
from quantkit.families.llama import FAMILY as LLAMA
from quantkit.families.llama import prepare as prepare_llama
from quantkit.families.pixtral import PROJECTOR as PIXTRAL
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention

_TEXT_TYPE = "ministral3"
# transformers' Ministral3Config.
_MINISTRAL3: dict[str, Any] = {
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """The text model's config under the name of its class; refuse other values of what llama.cpp's graph hard-codes."""
    kind = config.get("model_type")
    if kind not in ("mistral", "mistral3", _TEXT_TYPE):
        raise UnsupportedError(
            f"config.json: the text model has model_type {kind!r}; of Mistral 3 only mistral and {_TEXT_TYPE} are"
            " supported"
        )
    if kind != _TEXT_TYPE:
        return {**prepare_llama(config), "architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    only(config, "hidden_act", *SILU, family="Ministral 3")
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, Mapping):
        raise CheckpointError("config.json: Ministral 3 needs rope_parameters of rope_type 'yarn'; add them")
    if (rope_type := rope.get("rope_type") or rope.get("type")) != "yarn":
        raise CheckpointError(
            f"config.json: rope_type is {rope_type!r}, but Ministral 3 needs rope_parameters of rope_type 'yarn'"
        )
    for name in ("llama_4_scaling_beta", "mscale_all_dim", "original_max_position_embeddings"):
        if not number(rope, name):
            raise CheckpointError(f"config.json: rope_parameters of Ministral 3 have no {name}; add it")
    only(rope, "mscale", 1, family="Ministral 3 with YaRN")
    only(rope, "truncate", True, family="Ministral 3 with YaRN")
    only(rope, "attention_factor", family="Ministral 3 with YaRN")
    return {**config, "architectures": ["Ministral3ForCausalLM"]}


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """Llama's keys, and for Ministral 3 the scales of YaRN's attention and of late queries."""
    result = llama_keys(arch, sizes)
    if sizes.config.get("model_type") == _TEXT_TYPE:
        result += [
            Key(f"{arch}.rope.scaling.yarn_log_multiplier", "f32", sizes.rope["mscale_all_dim"]),
            Key(f"{arch}.attention.temperature_scale", "f32", sizes.rope["llama_4_scaling_beta"]),
        ]
    return result


def _late_queries(config: Config, _layer: int) -> tuple[float, int, int]:
    rope = config.get("rope_parameters") or config["rope_scaling"]
    return float(rope["llama_4_scaling_beta"]), int(rope["original_max_position_embeddings"]), 0


FAMILY = replace(
    LLAMA,
    name="Mistral 3",
    models="Mistral Small 3.1/3.2, Magistral, Devstral, Ministral 3",
    architectures=("Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"),
    gguf_arch="mistral3",
    keys=keys,
    defaults={"mistral": DEFAULTS["mistral"], _TEXT_TYPE: _MINISTRAL3},
    prepare=_prepare,
    text_models={"Mistral3ForConditionalGeneration": ("Mistral3ForConditionalGeneration", None)},
    rename=TEXT_PREFIXES,
    dropped=(Dropped(VISION, VISION_LEFT_OUT),),
    projectors={"Mistral3ForConditionalGeneration": PIXTRAL},
    forward={"Ministral3ForCausalLM": Architecture(attention=Attention(late_queries=_late_queries))},
)
