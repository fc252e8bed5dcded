"""Qwen3-ASR, its text model: Qwen 3's graph. No tower adds to its layers, so the GGUF states none.

Shape of the GGUF: llama.cpp's `qwen3vl` architecture (src/models/qwen3vl.cpp).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Dropped
from quantkit.families.base.multimodal import TOWERS, TOWERS_LEFT_OUT
from quantkit.families.qwen3 import DEFAULTS
from quantkit.families.qwen3vl import FAMILY as QWEN3_VL
from quantkit.tokenizer.roles import TokenRoles

_NAME = "Qwen3ASRForConditionalGeneration"
# transformers' Qwen3ASRConfig.
_SIZES = {
    "hidden_act": "silu",
    "max_position_embeddings": 65536,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Qwen3-VL's config.

    Raises:
        CheckpointError: rope has no sections, which llama.cpp needs.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    sections = rope.get("mrope_section") if isinstance(rope, Mapping) else None
    if not isinstance(sections, list) or len(sections) not in (3, 4):
        raise CheckpointError(
            f"config.json: rope has mrope_section {sections!r}, but Qwen3-ASR needs a list of three sizes; add it"
        )
    assert QWEN3_VL.prepare is not None
    return QWEN3_VL.prepare(config)


FAMILY = replace(
    QWEN3_VL,
    name="Qwen3-ASR",
    models="Qwen3-ASR 0.6B/1.7B, text only",
    architectures=(_NAME,),
    defaults={"qwen3": {**DEFAULTS["qwen3"], **_SIZES}},
    prepare=_prepare,
    text_models={_NAME: ("Qwen3ForCausalLM", "qwen3")},
    dropped=(Dropped(TOWERS, TOWERS_LEFT_OUT),),
    token_roles=TokenRoles(instead={"bos": "<|im_end|>", "eos": "<|im_end|>"}),
)
