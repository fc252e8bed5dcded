"""The projector of Gemma 4: a tower of Gemma's layers with rotary positions in two dimensions, then one matrix.

llama.cpp's graph: tools/mtmd/models/gemma4v.cpp. A checkpoint that hears too has one file for both towers
(gemma4_audio.py).
"""

from typing import Any

import numpy as np

from quantkit.families import gemma4_audio as audio
from quantkit.families.base.family import Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.projector import Projector, Sources, Tower
from quantkit.families.base.refusals import GELU, only, only_theta
from quantkit.families.base.tower_rules import LAYER, affine

# transformers' Gemma4VisionConfig.
_DEFAULTS = {
    "head_dim": 64,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 16,
    "patch_size": 16,
    "position_embedding_size": 10240,
}
_UNUSED_IMAGE_SIZE = 224
_BLOCK = "model.vision_tower.encoder.layers.{layer}"
_LINEARS = {
    "self_attn.q_proj": ("attn_q", "heads", "hidden"),
    "self_attn.k_proj": ("attn_k", "heads", "hidden"),
    "self_attn.v_proj": ("attn_v", "heads", "hidden"),
    "self_attn.o_proj": ("attn_out", "hidden", "heads"),
    "mlp.gate_proj": ("ffn_gate", "ffn", "hidden"),
    "mlp.up_proj": ("ffn_up", "ffn", "hidden"),
    "mlp.down_proj": ("ffn_down", "hidden", "ffn"),
}
_NORMS = {
    "input_layernorm": ("ln1", "hidden"),
    "post_attention_layernorm": ("attn_post_norm", "hidden"),
    "pre_feedforward_layernorm": ("ln2", "hidden"),
    "post_feedforward_layernorm": ("ffn_post_norm", "hidden"),
    "self_attn.q_norm": ("attn_q_norm", "head_dim"),
    "self_attn.k_norm": ("attn_k_norm", "head_dim"),
}


def _tower(config: dict[str, Any], _sources: Sources) -> dict[str, Any]:
    only(config, "hidden_activation", *GELU, family="Gemma 4's tower")
    only(config, "attention_bias", False, family="Gemma 4's tower")
    only(config, "pooling_kernel_size", 3, family="Gemma 4's tower")
    # the converter reads layer_norm_eps, which the class does not have
    only(config, "rms_norm_eps", 1e-6, family="Gemma 4's tower")
    only_theta(config, 100.0, "Gemma 4's tower")
    return {**config, "image_size": _UNUSED_IMAGE_SIZE}


def _keys(tower: Tower) -> list[Key]:
    vision_keys = [
        Key("clip.vision.projector_type", "str", "gemma4v"),
        Key("clip.vision.attention.layer_norm_epsilon", "f32", number(tower.config, "layer_norm_eps") or 1e-6),
    ]
    hearing = audio.audio_config(tower.whole)
    if hearing is None:
        return vision_keys
    return [*audio.tower_audio_keys(tower, hearing), *vision_keys, *audio.gemma4_audio_keys(hearing)]


def _sizes(tower: Tower) -> dict[str, int]:
    hearing = audio.audio_config(tower.whole)
    return {
        **(audio.audio_sizes(hearing) if hearing else {}),
        "heads": tower.n_head * tower.head_dim,
        "positions": size(tower.config, "position_embedding_size"),
        "patch_values": 3 * tower.own["patch"] ** 2,
    }


def _by_channel(tower: Hyperparameters) -> Take:
    """The values of a patch by channel, row and column; the checkpoint has the channels of a pixel together."""
    patch = tower.dimension("patch")
    order = np.arange(patch * patch * 3, dtype=np.int64).reshape(patch, patch, 3)
    return Take(columns=order.transpose(2, 0, 1).reshape(-1))


def _audio_rules(tower: Tower) -> tuple[Rule, ...]:
    hearing = audio.audio_config(tower.whole)
    return audio.audio_rules(hearing) if hearing else ()


def _fixed(tower: Tower) -> dict[str, str]:
    hearing = audio.audio_config(tower.whole)
    return audio.fixed_types(hearing) if hearing else {}


PROJECTOR = Projector(
    name="the projector of Gemma 4",
    rules=(
        Rule(
            "model.vision_tower.patch_embedder.input_proj.weight",
            "v.patch_embd.weight",
            ("hidden", "patch_values"),
            take=_by_channel,
            reshaped=("hidden", "3", "patch", "patch"),
        ),
        Rule(
            "model.vision_tower.patch_embedder.position_embedding_table",
            "v.position_embd.weight",
            ("2", "positions", "hidden"),
        ),
        Rule("model.vision_tower.std_bias", "v.std_bias", ("hidden",), required=False),
        Rule("model.vision_tower.std_scale", "v.std_scale", ("hidden",), required=False),
        Rule("model.embed_vision.embedding_projection.weight", "mm.input_projection.weight", ("text", "hidden")),
        *(
            rule
            for name, (target, *shape) in _NORMS.items()
            for rule in affine(f"{_BLOCK}.{name}", f"{LAYER}.{target}", *shape, bias=False)
        ),
        *(
            Rule(f"{_BLOCK}.{name}.linear.weight", f"{LAYER}.{target}.weight", tuple(shape))
            for name, (target, *shape) in _LINEARS.items()
        ),
        *(
            Rule(f"{_BLOCK}.{name}.{bound}", f"{LAYER}.{target}.{bound}", (), required=False, reshaped=("1",))
            for name, (target, *_) in _LINEARS.items()
            for bound in audio.BOUNDS
        ),
        Rule(f"{_BLOCK}.layer_scalar", f"{LAYER}.out_scale.weight", ("1",), required=False),
    ),
    keys=_keys,
    tensors=r"(model\.)?(vision_tower|embed_vision|audio_tower|embed_audio)\..*",
    defaults=_DEFAULTS,
    prepare=_tower,
    own=_sizes,
    computed_rules=_audio_rules,
    fixed=_fixed,
    rename=((r"^(?=(vision_tower|embed_vision|audio_tower|embed_audio)\.)", "model."),),
)
