"""The projector of Pixtral, Mistral 3 and their kin: a tower of Llama's layers with rotary positions in two dimensions.

llama.cpp's graph: tools/mtmd/models/pixtral.cpp. A row of patches ends with the embedding of the token [IMG_BREAK],
which the file holds. Mistral 3 merges squares of patches first.
"""

from typing import Any

import numpy as np

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size
from quantkit.families.base.projector import Projector, Sources, Tower
from quantkit.families.base.refusals import GELU, SILU, only_theta
from quantkit.families.base.tower_rules import LAYER, affine

# transformers' PixtralVisionConfig.
_DEFAULTS = {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "image_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 16,
}
_BLOCK = "vision_tower.transformer.layers.{layer}"
_BREAK = "[IMG_BREAK]"


def _tower(config: dict[str, Any], sources: Sources) -> dict[str, Any]:
    """The tower's config with `break_token`, the id of the token that ends a row of patches."""
    if config.get("model_type") not in (None, "pixtral"):
        raise UnsupportedError(
            f"config.json: vision_config has model_type {config['model_type']!r}, but llama.cpp runs this model only"
            " with a pixtral tower; leave --mmproj out"
        )
    if config["hidden_act"] not in (*GELU, *SILU):
        raise UnsupportedError(
            f"config.json: hidden_act of vision_config is {config['hidden_act']!r}, but llama.cpp runs this tower only"
            " with gelu or silu"
        )
    only_theta(config, 10000.0, "Pixtral's tower")
    # the class has no setting for it
    return {"layer_norm_eps": 1e-5, **config, "break_token": sources.token_id(_BREAK)}


def _keys(tower: Tower) -> list[Key]:
    activation = "clip.use_silu" if tower.config["hidden_act"] in SILU else "clip.use_gelu"
    merge = optional_size(tower.whole, "spatial_merge_size")
    return [
        Key("clip.projector_type", "str", "pixtral"),
        Key("clip.vision.attention.layer_norm_epsilon", "f32", tower.norm_eps),
        Key(activation, "bool", True),
        *([Key("clip.vision.spatial_merge_size", "u32", merge)] if merge else []),
    ]


def _sizes(tower: Tower) -> dict[str, int]:
    merge = optional_size(tower.whole, "spatial_merge_size") or 1
    assert tower.sources is not None
    vocab, token = tower.sources.text.vocab, tower.config["break_token"]
    if not 0 <= token < vocab:
        raise CheckpointError(
            f"the tokenizer gives {_BREAK} the id {token}, but the embedding has {vocab} rows; use the tokenizer that"
            " belongs to these weights"
        )
    return {
        "merged": merge * merge * tower.hidden,
        "heads": tower.n_head * tower.head_dim,
        "vocab": vocab,
    }


def _break_row(tower: Hyperparameters) -> Take:
    return Take(np.array([tower.config["break_token"]], dtype=np.int64))


PROJECTOR = Projector(
    name="the projector of Pixtral",
    rules=(
        Rule("vision_tower.patch_conv.weight", "v.patch_embd.weight", ("hidden", "3", "patch", "patch")),
        *affine("vision_tower.ln_pre", "v.pre_ln", "hidden", bias=False),
        *affine(f"{_BLOCK}.attention_norm", f"{LAYER}.ln1", "hidden", bias=False),
        *affine(f"{_BLOCK}.ffn_norm", f"{LAYER}.ln2", "hidden", bias=False),
        Rule(f"{_BLOCK}.attention.q_proj.weight", f"{LAYER}.attn_q.weight", ("heads", "hidden"), heads="n_head"),
        Rule(f"{_BLOCK}.attention.k_proj.weight", f"{LAYER}.attn_k.weight", ("heads", "hidden"), heads="n_head"),
        *affine(f"{_BLOCK}.attention.v_proj", f"{LAYER}.attn_v", "heads", "hidden", bias=False),
        *affine(f"{_BLOCK}.attention.o_proj", f"{LAYER}.attn_out", "hidden", "heads", bias=False),
        *affine(f"{_BLOCK}.feed_forward.gate_proj", f"{LAYER}.ffn_gate", "ffn", "hidden", bias=False),
        *affine(f"{_BLOCK}.feed_forward.up_proj", f"{LAYER}.ffn_up", "ffn", "hidden", bias=False),
        *affine(f"{_BLOCK}.feed_forward.down_proj", f"{LAYER}.ffn_down", "hidden", "ffn", bias=False),
        *affine("multi_modal_projector.norm", "mm.input_norm", "hidden", bias=False, required=False),
        *affine(
            "multi_modal_projector.patch_merger.merging_layer",
            "mm.patch_merger",
            "hidden",
            "merged",
            bias=False,
            required=False,
        ),
        Rule("multi_modal_projector.linear_1.weight", "mm.1.weight", ("text", "hidden")),
        Rule("multi_modal_projector.linear_1.bias", "mm.1.bias", ("text",), required=False),
        Rule("multi_modal_projector.linear_2.weight", "mm.2.weight", ("text", "text")),
        Rule("multi_modal_projector.linear_2.bias", "mm.2.bias", ("text",), required=False),
        Rule("embed_tokens.weight", "v.token_embd.img_break", ("vocab", "text"), take=_break_row, reshaped=("text",)),
    ),
    keys=_keys,
    tensors=r"(model\.)?(vision_tower|multi_modal_projector)\..*",
    defaults=_DEFAULTS,
    prepare=_tower,
    own=_sizes,
    rename=(
        (r"^model\.(?=vision_tower\.|multi_modal_projector\.)", ""),
        (r"^(model\.language_model|language_model\.model|model)\.(?=embed_tokens\.)", ""),
    ),
)
