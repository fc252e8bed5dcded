"""Projectors of models that hear: Whisper's encoder, then what leads into the text model.

llama.cpp's graph: tools/mtmd/models/whisper-enc.cpp. Voxtral, Qwen2-Audio and Audio Flamingo 3; the text model is of
any family (see wrappers.py).
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Key, Rule
from quantkit.families.base.hyperparameters import number, size
from quantkit.families.base.projector import Projector, Sources, Tower
from quantkit.families.base.refusals import GELU, only
from quantkit.families.base.tower_rules import affine

_BLOCK, _TARGET = "audio_tower.layers.{layer}", "a.blk.{layer}"
_MODULES = {
    "fc1": ("ffn_up", "ffn", "hidden"),
    "fc2": ("ffn_down", "hidden", "ffn"),
    "final_layer_norm": ("ln2", "hidden"),
    "self_attn.q_proj": ("attn_q", "hidden", "hidden"),
    "self_attn.v_proj": ("attn_v", "hidden", "hidden"),
    "self_attn.out_proj": ("attn_out", "hidden", "hidden"),
    "self_attn_layer_norm": ("ln1", "hidden"),
}
# transformers' Qwen2AudioEncoderConfig, VoxtralEncoderConfig and AudioFlamingo3EncoderConfig.
_DEFAULTS = {"activation_function": "gelu", "max_source_positions": 1500, "num_mel_bins": 128}
_WHISPER = {**_DEFAULTS, "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20}
_STACKED = 4
"""Vectors that Voxtral joins into one."""
_PROJECTION = "multi_modal_projector"


def _tower(config: dict[str, Any], _sources: Sources) -> dict[str, Any]:
    """The tower's config under the standard names; classes of Whisper's own names have d_model."""
    only(config, "activation_function", *GELU, family="a model with Whisper's encoder")
    only(config, "scale_embedding", False, family="a model with Whisper's encoder")
    standard_names = {
        "hidden_size": "d_model",
        "intermediate_size": "encoder_ffn_dim",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }
    named = {name: config[whisper_name] for name, whisper_name in standard_names.items() if whisper_name in config}
    return {"layer_norm_eps": 1e-5, **named, **config}


def _voxtral(config: dict[str, Any], sources: Sources) -> dict[str, Any]:
    named = _tower(config, sources)
    only(named, "intermediate_size", _STACKED * size(named, "hidden_size"), family="Voxtral's tower")
    return named


def _keys(kind: str, tower: Tower) -> list[Key]:
    return [
        Key("clip.projector_type", "str", kind),
        Key("clip.audio.num_mel_bins", "u32", size(tower.config, "num_mel_bins")),
        Key("clip.audio.attention.layer_norm_epsilon", "f32", number(tower.config, "layer_norm_eps")),
    ]


def _convolution(number: int, *shape: str) -> tuple[Rule, ...]:
    source, target = f"audio_tower.conv{number}", f"a.conv1d.{number}"
    return (
        Rule(f"{source}.weight", f"{target}.weight", shape),
        Rule(f"{source}.bias", f"{target}.bias", ("hidden",), reshaped=("hidden", "1")),
    )


_RULES = (
    *_convolution(1, "hidden", "bins", "3"),
    *_convolution(2, "hidden", "hidden", "3"),
    Rule("audio_tower.embed_positions.weight", "a.position_embd.weight", ("positions", "hidden")),
    *affine("audio_tower.layer_norm", "a.post_ln", "hidden"),
    *(
        rule
        for name, (target, *shape) in _MODULES.items()
        for rule in affine(f"{_BLOCK}.{name}", f"{_TARGET}.{target}", *shape)
    ),
    Rule(f"{_BLOCK}.self_attn.k_proj.weight", f"{_TARGET}.attn_k.weight", ("hidden", "hidden")),
)
QWEN2_AUDIO_PROJECTOR = Projector(
    name="the projector of Qwen2-Audio",
    rules=(*_RULES, *affine(f"{_PROJECTION}.linear", "mm.a.fc", "text", "hidden")),
    keys=lambda tower: _keys("qwen2a", tower),
    tensors=r"(model\.)?(audio_tower|multi_modal_projector)\..*",
    defaults={**_DEFAULTS, "d_model": 1280, "encoder_ffn_dim": 5120, "encoder_attention_heads": 20}
    | {"encoder_layers": 32},
    prepare=_tower,
    own=lambda tower: {
        "bins": size(tower.config, "num_mel_bins"),
        "positions": size(tower.config, "max_source_positions"),
    },
    fixed={"a.conv1d.1.weight": "f16", "a.conv1d.2.weight": "f16"},
    rename=((r"^model\.(?=audio_tower\.|multi_modal_projector\.)", ""),),
    section="audio_config",
    hears=True,
)
VOXTRAL_PROJECTOR = replace(
    QWEN2_AUDIO_PROJECTOR,
    name="the projector of Voxtral",
    rules=(
        *_RULES,
        *affine(f"{_PROJECTION}.linear_1", "mm.a.mlp.1", "text", "ffn", bias=False),
        *affine(f"{_PROJECTION}.linear_2", "mm.a.mlp.2", "text", "text", bias=False),
    ),
    keys=lambda tower: [*_keys("voxtral", tower), Key("clip.audio.projector.stack_factor", "u32", _STACKED)],
    defaults={**_WHISPER, "num_hidden_layers": 32},
    prepare=_voxtral,
)
FLAMINGO_PROJECTOR = replace(
    QWEN2_AUDIO_PROJECTOR,
    name="the projector of Audio Flamingo 3",
    rules=(
        *_RULES,
        *affine(f"{_PROJECTION}.linear_1", "mm.a.mlp.1", "text", "hidden"),
        *affine(f"{_PROJECTION}.linear_2", "mm.a.mlp.2", "text", "text"),
    ),
    keys=lambda tower: _keys("musicflamingo", tower),
    defaults={**_WHISPER, "num_hidden_layers": 32},
    fixed={"a.conv1d.1.weight": "f32", "a.conv1d.2.weight": "f32"},
)
