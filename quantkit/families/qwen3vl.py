"""Qwen 3 VL, its text model: Qwen 3's graph. Its multimodal rope gives text the positions of plain rope.

Shape of the GGUF: llama.cpp's `qwen3vl` architecture (src/models/qwen3vl.cpp). The image tower adds to the hidden
states of the first layers (DeepStack); a key gives the number of these values.
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Dropped, Key
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.keys import base_keys
from quantkit.families.base.multimodal import TEXT_PREFIXES, VISION, VISION_LEFT_OUT
from quantkit.families.qwen3 import DEFAULTS
from quantkit.families.qwen3 import FAMILY as QWEN3


def deepstack_key(arch: str, sizes: Hyperparameters) -> Key:
    """The number of layers that the image tower adds to.

    Raises:
        CheckpointError: the list of these layers in vision_config is not a list of layers of the text model.
    """
    vision = sizes.config.get("vision_config")
    layers = vision.get("deepstack_visual_indexes") if isinstance(vision, dict) else None
    if not isinstance(layers or [], list) or len(layers or []) > sizes.n_layer:
        raise CheckpointError(
            f"config.json: vision_config has deepstack_visual_indexes {layers!r}, but the text model has"
            f" {sizes.n_layer} layers; correct the list"
        )
    return Key(f"{arch}.n_deepstack_layers", "u32", len(layers or []))


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys and the number of layers that the image tower adds to."""
    return [*base_keys(arch, sizes), deepstack_key(arch, sizes)]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Qwen 3's config, under the name of Qwen 3's class."""
    assert QWEN3.prepare is not None
    return {**QWEN3.prepare(config), "model_type": "qwen3"}


FAMILY = replace(
    QWEN3,
    name="Qwen3-VL",
    models="Qwen3-VL 2B/4B/8B/32B, text only",
    architectures=("Qwen3VLForConditionalGeneration",),
    gguf_arch="qwen3vl",
    keys=keys,
    prepare=_prepare,
    # transformers' Qwen3VLTextConfig
    defaults={"qwen3_vl_text": {**DEFAULTS["qwen3"], "max_position_embeddings": 128000, "rope_theta": 500000.0}},
    text_models={"Qwen3VLForConditionalGeneration": ("Qwen3ForCausalLM", "qwen3_vl_text")},
    rename=TEXT_PREFIXES,
    dropped=(Dropped(VISION, VISION_LEFT_OUT),),
    forward=None,
)
