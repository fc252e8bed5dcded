"""HunyuanOCR, its text model: Hunyuan's graph with multimodal rope, which text sees as plain.

Shape of the GGUF: llama.cpp's `hunyuan_vl` architecture (src/models/hunyuan-vl.cpp). The fixed alpha of rope is a key:
llama.cpp stretches the base itself.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Dropped, Key
from quantkit.families.base.hyperparameters import Hyperparameters, number
from quantkit.families.base.keys import base_keys
from quantkit.families.base.multimodal import TEXT_PREFIXES, TOWERS, TOWERS_LEFT_OUT
from quantkit.families.base.refusals import only
from quantkit.families.hunyuan import FAMILY as HUNYUAN
from quantkit.families.hunyuan import prepare_hunyuan

_NAME = "HunYuanVLForConditionalGeneration"

# transformers' HunYuanVLTextConfig.
_TEXT: dict[str, Any] = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Hunyuan's config; rope of type `xdrope` is its dynamic rope with sections.

    Raises:
        CheckpointError: rope has no sections or no alpha, which llama.cpp needs.
    """
    name = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = config.get(name)
    settings = rope if isinstance(rope, Mapping) else {}
    sections = settings.get("mrope_section") or settings.get("xdrope_section")
    if not isinstance(sections, list) or len(sections) not in (3, 4):
        raise CheckpointError(
            f"config.json: {name} has sections {sections!r}, but HunyuanOCR needs a list of sizes; add it"
        )
    if not number(settings, "alpha"):
        raise CheckpointError(
            f"config.json: {name} has alpha {settings.get('alpha')!r}, but HunyuanOCR needs one; add it"
        )
    only(
        {"rope_type": settings.get("rope_type") or settings.get("type")},
        "rope_type",
        "dynamic",
        "xdrope",
        family="HunyuanOCR",
    )
    plain = {key: value for key, value in settings.items() if key not in ("type", "xdrope_section")}
    config[name] = {**plain, "rope_type": "dynamic", "mrope_section": sections}
    config.update(architectures=["HunYuanDenseV1ForCausalLM"], model_type="hunyuan_v1_dense")
    return prepare_hunyuan(config, "HunyuanOCR")


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys, and those of rope: base, alpha, no scaling, sections."""
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.rope.scaling.type", "str", "none"),
        Key(f"{arch}.rope.scaling.factor", "f32", number(sizes.rope, "factor") or 1.0),
        Key(f"{arch}.rope.scaling.alpha", "f32", number(sizes.rope, "alpha")),
        Key(f"{arch}.rope.scaling.original_context_length", "u32", sizes.context),
    ]


FAMILY = replace(
    HUNYUAN,
    name="HunyuanOCR",
    models="HunyuanOCR 1B, text only",
    architectures=(_NAME,),
    gguf_arch="hunyuan_vl",
    keys=_keys,
    defaults={"hunyuan_vl_text": _TEXT, "hunyuan_vl": _TEXT},
    prepare=_prepare,
    text_models={_NAME: (_NAME, "hunyuan_vl_text")},
    rename=TEXT_PREFIXES,
    dropped=(Dropped(TOWERS.replace("|talker", "|vit|talker"), TOWERS_LEFT_OUT),),
    forward=None,
)
