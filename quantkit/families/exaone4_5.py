"""EXAONE 4.5, its text model: EXAONE 4's graph.

Shape of the GGUF: llama.cpp's `exaone4` architecture (src/models/exaone4.cpp).
"""

from dataclasses import replace

from quantkit.families.base.family import Dropped
from quantkit.families.base.multimodal import TEXT_PREFIXES, TOWERS, TOWERS_LEFT_OUT
from quantkit.families.exaone4 import FAMILY as EXAONE4

_NAME = "Exaone4_5_ForConditionalGeneration"

FAMILY = replace(
    EXAONE4,
    name="EXAONE 4.5",
    models="EXAONE 4.5 33B, text only",
    architectures=(_NAME,),
    # published files name the nested type exaone4_5_text
    text_models={_NAME: ("Exaone4ForCausalLM", "exaone4")},
    rename=TEXT_PREFIXES,
    dropped=(
        Dropped(TOWERS, TOWERS_LEFT_OUT),
        Dropped(
            r"mtp\..*", "they predict a later token, which the runtime does not read; this GGUF has the model's own"
        ),
    ),
    forward=None,
)
