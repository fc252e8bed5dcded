"""PaddleOCR-VL, its text model: ERNIE 4.5's shape with multimodal rope over the halves of a head.

Shape of the GGUF: llama.cpp's `paddleocr` architecture (src/models/paddleocr.cpp). Text sees plain rope.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Dropped
from quantkit.families.base.multimodal import TEXT_PREFIXES, TOWERS, TOWERS_LEFT_OUT
from quantkit.families.ernie4_5 import DEFAULTS, prepare
from quantkit.families.ernie4_5 import FAMILY as ERNIE
from quantkit.forward.description import Architecture

_NAME = "PaddleOCRVLForConditionalGeneration"

# transformers' PaddleOCRTextConfig.
_TEXT: dict[str, Any] = {
    **DEFAULTS["ernie4_5"],
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_hidden_layers": 18,
    "vocab_size": 103424,
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have.

    Raises:
        CheckpointError: rope has no sections, which llama.cpp needs.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    sections = rope.get("mrope_section") if isinstance(rope, Mapping) else None
    if not isinstance(sections, list) or len(sections) not in (3, 4):
        raise CheckpointError(
            f"config.json: rope has mrope_section {sections!r}, but PaddleOCR-VL needs a list of three sizes; add it"
        )
    return prepare(config)


FAMILY = replace(
    ERNIE,
    name="PaddleOCR-VL",
    models="PaddleOCR-VL 0.9B (text only)",
    architectures=(_NAME,),
    gguf_arch="paddleocr",
    defaults={"paddleocr_vl_text": _TEXT, "paddleocr_vl": _TEXT},
    prepare=_prepare,
    text_models={_NAME: (_NAME, "paddleocr_vl_text")},
    rope_kinds=("default",),
    rename=TEXT_PREFIXES,
    dropped=(Dropped(TOWERS, TOWERS_LEFT_OUT),),
    forward={_NAME: Architecture(tied=True)},
)
