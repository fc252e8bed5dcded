"""The projector of Idefics3 and SmolVLM: a SigLIP tower, then squares of patches that one matrix leads into the text.

llama.cpp's graph: tools/mtmd/models/siglip.cpp. The text model is of any family (see wrappers.py).
"""

from collections.abc import Mapping
from typing import Any

from quantkit.families import siglip
from quantkit.families.base.family import Key, Rule
from quantkit.families.base.hyperparameters import number, optional_size
from quantkit.families.base.projector import Projector, Sources, Tower
from quantkit.families.base.refusals import GELU, only

# transformers' Idefics3VisionConfig and SmolVLMVisionConfig.
_DEFAULTS = {
    "hidden_size": 1152,
    "image_size": 224,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-6,
    "num_attention_heads": 16,
    "num_hidden_layers": 12,
    "patch_size": 32,
}


def _tower(config: dict[str, Any], _sources: Sources) -> dict[str, Any]:
    only(config, "hidden_act", *GELU, family="Idefics3")
    return config


def _scale(tower: Tower) -> int:
    return optional_size(tower.whole, "scale_factor") or 2


def _keys(tower: Tower) -> list[Key]:
    edges = tower.processor.get("size")
    edges = edges if isinstance(edges, Mapping) else {}
    return [
        Key("clip.projector_type", "str", "idefics3"),
        Key("clip.vision.attention.layer_norm_epsilon", "f32", number(tower.config, "layer_norm_eps")),
        Key("clip.vision.projector.scale_factor", "u32", _scale(tower)),
        Key("clip.use_gelu", "bool", True),
        Key("clip.vision.preproc_image_size", "u32", optional_size(edges, "longest_edge") or tower.own["image"]),
    ]


PROJECTOR = Projector(
    name="the projector of Idefics3",
    rules=(
        *siglip.RULES,
        Rule("connector.modality_projection.proj.weight", "mm.model.fc.weight", ("text", "merged")),
    ),
    keys=_keys,
    tensors=r"(model\.)?(vision_model|connector)\..*",
    defaults=_DEFAULTS,
    prepare=_tower,
    own=lambda tower: {"positions": siglip.positions(tower), "merged": _scale(tower) ** 2 * tower.hidden},
    fixed=siglip.FIXED,
    rename=(siglip.PREFIX, (r"^model\.connector\.", "connector.")),
)
