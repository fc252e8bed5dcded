"""Gemma 3, its text model: alone, or out of a checkpoint that sees images too.

It is Gemma 2 without caps, with norms of queries and keys. Five sliding layers alternate with a global one; the two
kinds have different rotary bases.

Shape of the GGUF: llama.cpp's `gemma3` architecture (src/models/gemma3.cpp).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families import gemma2, siglip
from quantkit.families.base.adjust import plus_one
from quantkit.families.base.family import Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.multimodal import TEXT_PREFIXES, VISION, VISION_LEFT_OUT
from quantkit.families.base.projector import Projector, Sources, Tower
from quantkit.families.base.refusals import GELU, only
from quantkit.families.base.sliding import pattern_keys, pattern_of, sliding_layers
from quantkit.families.base.traits import Traits
from quantkit.families.gemma import MATRICES, RMS_FROM_ONE, norm
from quantkit.families.gemma2 import FORWARD as GEMMA2_FORWARD
from quantkit.families.gemma2 import NORMS, refuse_other_query_scale
from quantkit.forward.config_keys import Config, given
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import HEAD_NORMS, local_rope, query_scale, slides, window
from quantkit.tokenizer.roles import SpacePrefix, TokenRoles

# llama.cpp's value for a file without the key.
_PATTERN = 6
_LAYERS_OF_27B = 62
_IMAGE_TOKENS, _IMAGE_SCALE = 256, 4

# transformers' Gemma3TextConfig.
TEXT_DEFAULTS: dict[str, Any] = {
    **gemma2.DEFAULTS["gemma2"],
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """The text model's config; refuse what llama.cpp's graph has built in otherwise."""
    only(config, "hidden_activation", *GELU, family="Gemma 3")
    only(config, "attention_bias", False, family="Gemma 3")
    only(config, "use_bidirectional_attention", False, family="Gemma 3")
    refuse_other_query_scale(config, _LAYERS_OF_27B, "Gemma 3")
    if config.get("attn_logit_softcapping") is not None:
        raise UnsupportedError(
            f"config.json: attn_logit_softcapping is {config['attn_logit_softcapping']!r}, but llama.cpp runs Gemma 3"
            " without one; a GGUF cannot express this setting"
        )
    read_local_rope(config)
    return config


def read_local_rope(config: dict[str, Any]) -> None:
    """Read the rotary settings of sliding layers as transformers 5 states them; llama.cpp has only their base."""
    rope = config.get("rope_parameters")
    local = rope.get("sliding_attention") if isinstance(rope, Mapping) else None
    if not isinstance(local, Mapping):
        return
    if local.get("rope_type", "default") != "default":
        raise UnsupportedError(
            f"config.json: sliding layers have rope scaling {local['rope_type']!r}; llama.cpp scales global ones only"
        )
    if (theta := number(local, "rope_theta")) is not None:
        config["rope_local_base_freq"] = theta


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys, the cap if there is one, and the window if a layer has it."""
    config, result = sizes.config, base_keys(arch, sizes)
    if cap := number(config, "final_logit_softcapping"):
        result.append(Key(f"{arch}.final_logit_softcapping", "f32", cap))
    layers = sliding_layers(config, sizes.n_layer, pattern_of(config, _PATTERN))
    if any(layers):
        result.append(Key(f"{arch}.attention.sliding_window", "u32", size(config, "sliding_window")))
        result += pattern_keys(arch, layers, _PATTERN)
    return result


def _slides(config: Config, layer: int) -> bool:
    pattern = int(given(config, "sliding_window_pattern", "_sliding_window_pattern", default=6))
    return slides(config, layer, (layer + 1) % pattern != 0)


FORWARD = replace(
    GEMMA2_FORWARD,
    attention=Attention(
        norms=HEAD_NORMS,
        norm=RMS_FROM_ONE,
        rope=local_rope(_slides, "rope_local_base_freq"),
        scale=query_scale,
        window=window(_slides),
    ),
    refused=lambda config: "attention to later tokens" if config.get("use_bidirectional_attention") else None,
)


def _tower(config: dict[str, Any], _sources: Sources) -> dict[str, Any]:
    only(config, "hidden_act", *GELU, family="Gemma 3's tower")
    return config


def _projector_keys(tower: Tower) -> list[Key]:
    """The scale factor is written only for models with other patches than the published ones."""
    per_side = int((number(tower.processor, "image_seq_length") or _IMAGE_TOKENS) ** 0.5)
    scale = tower.own["image"] // tower.own["patch"] // per_side
    return [
        Key("clip.projector_type", "str", "gemma3"),
        Key("clip.vision.attention.layer_norm_epsilon", "f32", number(tower.config, "layer_norm_eps")),
        Key("clip.use_gelu", "bool", True),
        *([Key("clip.vision.projector.scale_factor", "u32", scale)] if scale not in (0, _IMAGE_SCALE) else []),
    ]


PROJECTOR = Projector(
    name="the projector of Gemma 3",
    rules=(
        *siglip.RULES,
        Rule("multi_modal_projector.mm_input_projection_weight", "mm.input_projection.weight", ("hidden", "text")),
        Rule(
            "multi_modal_projector.mm_soft_emb_norm.weight",
            "mm.soft_emb_norm.weight",
            ("hidden",),
            adjust=plus_one,
        ),
    ),
    keys=_projector_keys,
    # a head that the model does not use
    tensors=r"(model\.)?(vision_tower\.(?!(vision_model\.)?head\.)|multi_modal_projector\.).*",
    defaults=siglip.DEFAULTS,
    prepare=_tower,
    own=lambda tower: {"positions": siglip.positions(tower)},
    # llama.cpp multiplies by it in half precision
    fixed={**siglip.FIXED, "mm.input_projection.weight": "f16"},
    rename=(
        siglip.PREFIX,
        (r"^(model\.)?vision_tower\.", ""),
        (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
    ),
)

FAMILY = Family(
    name="Gemma 3",
    models="Gemma 3 270M/1B/4B/12B/27B",
    architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    gguf_arch="gemma3",
    rules=(
        *MATRICES,
        *NORMS,
        norm("self_attn.q_norm", "attn_q_norm", "head_dim"),
        norm("self_attn.k_norm", "attn_k_norm", "head_dim"),
        Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
    ),
    keys=keys,
    defaults={"gemma3_text": TEXT_DEFAULTS},
    prepare=prepare,
    text_models={"Gemma3ForConditionalGeneration": ("Gemma3ForCausalLM", "gemma3_text")},
    rename=TEXT_PREFIXES,
    dropped=(Dropped(VISION, VISION_LEFT_OUT),),
    projectors={"Gemma3ForConditionalGeneration": PROJECTOR},
    rope_kinds=("default", "linear"),
    forward={"Gemma3ForCausalLM": FORWARD},
    traits=Traits(sliding_every=6, scaled_query=True, scaled_embedding=True),
    token_roles=TokenRoles(space_prefix=SpacePrefix.FALSE_LAST),
)
