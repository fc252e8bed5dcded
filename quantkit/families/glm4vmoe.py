"""GLM-4.5V and GLM-4.6V, their text model: GLM-4.5's graph with multimodal rope, which text sees as plain.

Shape of the GGUF: llama.cpp's `glm4moe` architecture (src/models/glm4-moe.cpp).
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Dropped
from quantkit.families.base.multimodal import TEXT_PREFIXES, TOWERS, TOWERS_LEFT_OUT
from quantkit.families.glm4moe import DEFAULTS
from quantkit.families.glm4moe import FAMILY as GLM4_MOE

_NAME = "Glm4vMoeForConditionalGeneration"

# transformers' Glm4vMoeTextConfig.
_TEXT: dict[str, Any] = {
    **DEFAULTS["glm4_moe"],
    "attention_bias": True,
    "hidden_act": "silu",
    "max_position_embeddings": 65536,
    "num_nextn_predict_layers": None,
    "tie_word_embeddings": False,
}

FAMILY = replace(
    GLM4_MOE,
    name="GLM-4.5V",
    models="GLM-4.5V, GLM-4.6V, text only",
    architectures=(_NAME,),
    defaults={"glm4v_moe_text": _TEXT},
    text_models={_NAME: ("Glm4MoeForCausalLM", "glm4v_moe_text")},
    rope_kinds=("default",),
    rename=TEXT_PREFIXES,
    dropped=(Dropped(TOWERS, TOWERS_LEFT_OUT),),
    no_effect=(),
    forward=None,
)
