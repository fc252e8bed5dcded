"""The tower with which Gemma 4 hears: Conformer layers after two convolutions. It is in the file of the projector.

llama.cpp's graph: tools/mtmd/models/gemma4a.cpp.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Key, Rule
from quantkit.families.base.hyperparameters import number, optional_size, size
from quantkit.families.base.projector import Tower
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.tower_rules import affine

# transformers' Gemma4AudioConfig.
_DEFAULTS = {
    "conv_kernel_size": 5,
    "hidden_size": 1024,
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "output_proj_dims": 1536,
    "subsampling_conv_channels": [128, 32],
}
_MEL_BINS = 128
# of llama.cpp's graph (tools/mtmd/models/gemma4a.cpp); no key states them
_CONSTANTS = {
    "attention_chunk_size": 12,
    "attention_context_left": 13,
    "attention_context_right": 0,
    "attention_invalid_logits_value": -1e9,
    "attention_logit_cap": 50.0,
    "gradient_clipping": 1e10,
    "residual_weight": 0.5,
    "rms_norm_eps": 1e-6,
}
_TOWER, _CONVOLUTIONS = "model.audio_tower", "model.audio_tower.subsample_conv_projection"
_LINEARS = {
    "feed_forward1.ffw_layer_1": ("ffn_up", "audio_ffn", "audio"),
    "feed_forward1.ffw_layer_2": ("ffn_down", "audio", "audio_ffn"),
    "feed_forward2.ffw_layer_1": ("ffn_up_1", "audio_ffn", "audio"),
    "feed_forward2.ffw_layer_2": ("ffn_down_1", "audio", "audio_ffn"),
    "lconv1d.linear_start": ("conv_pw1", "audio_gated", "audio"),
    "lconv1d.linear_end": ("conv_pw2", "audio", "audio"),
    "self_attn.q_proj": ("attn_q", "audio", "audio"),
    "self_attn.k_proj": ("attn_k", "audio", "audio"),
    "self_attn.v_proj": ("attn_v", "audio", "audio"),
    "self_attn.post": ("attn_out", "audio", "audio"),
}
_NORMS = {
    "feed_forward1.pre_layer_norm": "ffn_norm",
    "feed_forward1.post_layer_norm": "ffn_post_norm",
    "feed_forward2.pre_layer_norm": "ffn_norm_1",
    "feed_forward2.post_layer_norm": "ffn_post_norm_1",
    "lconv1d.conv_norm": "norm_conv",
    "lconv1d.pre_layer_norm": "conv_norm",
    "norm_out": "ln2",
    "norm_post_attn": "attn_post_norm",
    "norm_pre_attn": "attn_pre_norm",
}
BOUNDS = ("input_max", "input_min", "output_max", "output_min")
"""Limits to which a linear clips its inputs and outputs."""


def audio_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tower's config, complete; None for a model that does not hear.

    Raises:
        CheckpointError: it is not an object, or has other than two convolutions.
        UnsupportedError: a setting differs from a constant of llama.cpp's graph.
    """
    stated = config.get("audio_config")
    if stated is None:
        return None
    if not isinstance(stated, Mapping):
        raise CheckpointError(f"config.json: audio_config must be an object, not {stated!r}")
    full = {**_DEFAULTS, **{key: value for key, value in stated.items() if value is not None}}
    channels = full["subsampling_conv_channels"]
    if not isinstance(channels, list) or len(channels) != 2:
        raise CheckpointError(
            f"config.json: subsampling_conv_channels is {channels!r}, but the tower has two convolutions; correct it"
        )
    for name, value in _CONSTANTS.items():
        only(full, name, value, family="Gemma 4's audio tower")
    only(full, "hidden_act", *SILU, family="Gemma 4's audio tower")
    return full


def audio_sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Sizes that the rules name."""
    hidden = size(config, "hidden_size")
    first, second = (size({"subsampling_conv_channels": n}, "subsampling_conv_channels") for n in _channels(config))
    return {
        "audio": hidden,
        "audio_ffn": 4 * hidden,
        "audio_gated": 2 * hidden,
        "audio_head": hidden // size(config, "num_attention_heads"),
        "audio_kernel": size(config, "conv_kernel_size"),
        "audio_out": size(config, "output_proj_dims"),
        "audio_first": first,
        "audio_second": second,
        # a second of the bins of each channel
        "audio_bins": first // 4 * second,
    }


def _channels(config: Mapping[str, Any]) -> list[Any]:
    channels: list[Any] = config["subsampling_conv_channels"]
    return channels


def _softplus(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.logaddexp(0.0, rows.astype(np.float64)).astype(np.float32)


def audio_rules(config: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Rules for every layer of the tower, its convolutions and what leads into the text model."""
    rules = [
        Rule(
            f"{_CONVOLUTIONS}.layer0.conv.weight",
            "a.conv1d.0.weight",
            ("audio_first", "1", "3", "3"),
        ),
        Rule(
            f"{_CONVOLUTIONS}.layer1.conv.weight",
            "a.conv1d.1.weight",
            ("audio_second", "audio_first", "3", "3"),
        ),
        *affine(f"{_CONVOLUTIONS}.layer0.norm", "a.conv1d.0.norm", "audio_first", bias=False),
        *affine(f"{_CONVOLUTIONS}.layer1.norm", "a.conv1d.1.norm", "audio_second", bias=False),
        Rule(
            f"{_CONVOLUTIONS}.input_proj_linear.weight",
            "a.input_projection.weight",
            ("audio", "audio_bins"),
        ),
        *affine(f"{_TOWER}.output_proj", "a.pre_encode.out", "audio_out", "audio"),
        Rule("model.embed_audio.embedding_projection.weight", "mm.a.input_projection.weight", ("text", "audio_out")),
    ]
    for layer in range(size(config, "num_hidden_layers")):
        rules += _layer(f"{_TOWER}.layers.{layer}", f"a.blk.{layer}")
    return tuple(rules)


def _layer(at: str, to: str) -> list[Rule]:
    rules = [
        rule
        for name, target in _NORMS.items()
        for rule in affine(f"{at}.{name}", f"{to}.{target}", "audio", bias=False)
    ]
    for name, (target, *shape) in _LINEARS.items():
        rules.append(Rule(f"{at}.{name}.linear.weight", f"{to}.{target}.weight", tuple(shape)))
        rules += [
            Rule(f"{at}.{name}.{bound}", f"{to}.{target}.{bound}", (), required=False, reshaped=("1",))
            for bound in BOUNDS
        ]
    return [
        *rules,
        Rule(f"{at}.self_attn.relative_k_proj.weight", f"{to}.attn_k_rel.weight", ("audio", "audio")),
        Rule(f"{at}.self_attn.per_dim_scale", f"{to}.per_dim_scale.weight", ("audio_head",), adjust=_softplus),
        Rule(
            f"{at}.lconv1d.depthwise_conv1d.weight",
            f"{to}.conv_dw.weight",
            ("audio", "1", "audio_kernel"),
            reshaped=("audio", "audio_kernel"),
        ),
    ]


def fixed_types(config: Mapping[str, Any]) -> dict[str, str]:
    """Convolutions stay in float32."""
    layers = range(size(config, "num_hidden_layers"))
    names = ("a.conv1d.0", "a.conv1d.1", "a.input_projection", *(f"a.blk.{layer}.conv_dw" for layer in layers))
    return {f"{name}.weight": "f32" for name in names}


def tower_audio_keys(tower: Tower, config: Mapping[str, Any]) -> list[Key]:
    """The keys that every projector of audio has, in the converter's order."""
    return [
        Key("clip.has_audio_encoder", "bool", True),
        Key("clip.audio.projection_dim", "u32", tower.own["text"]),
        Key("clip.audio.embedding_length", "u32", size(config, "hidden_size")),
        Key("clip.audio.feed_forward_length", "u32", 4 * size(config, "hidden_size")),
        Key("clip.audio.block_count", "u32", size(config, "num_hidden_layers")),
        Key("clip.audio.attention.head_count", "u32", size(config, "num_attention_heads")),
    ]


def gemma4_audio_keys(config: Mapping[str, Any]) -> list[Key]:
    """Gemma 4's own keys."""
    return [
        Key("clip.audio.projector_type", "str", "gemma4a"),
        Key("clip.audio.num_mel_bins", "u32", optional_size(config, "input_feat_size") or _MEL_BINS),
        Key("clip.audio.attention.layer_norm_epsilon", "f32", number(config, "layer_norm_eps") or 1e-6),
    ]
