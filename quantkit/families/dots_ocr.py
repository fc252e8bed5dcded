"""dots.ocr, its text model: Qwen 2, with its settings at the top level of config.json.

Shape of the GGUF: llama.cpp's `qwen2` architecture (src/models/qwen2.cpp).
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Dropped
from quantkit.families.base.multimodal import TOWERS, TOWERS_LEFT_OUT
from quantkit.families.base.refusals import only
from quantkit.families.qwen2 import FAMILY as QWEN2


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Qwen 2's config, under the name of Qwen 2's class."""
    only(config, "attention_bias", True, family="dots.ocr")
    assert QWEN2.prepare is not None
    plain = {key: value for key, value in config.items() if key != "vision_config"}
    return {**QWEN2.prepare(plain), "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


FAMILY = replace(
    QWEN2,
    name="dots.ocr",
    models="dots.ocr (text only)",
    architectures=("DotsOCRForCausalLM",),
    defaults={"dots_ocr": QWEN2.defaults["qwen2"]},
    prepare=_prepare,
    rename=(),
    dropped=(Dropped(TOWERS, TOWERS_LEFT_OUT),),
    forward=None,
)
