"""GLM-4.1V, GLM-4.6V-Flash and GLM-OCR, their text model: GLM-4's graph with multimodal rope, which text sees as plain.

Shape of the GGUF: llama.cpp's `glm4` architecture (src/models/glm4.cpp). Its multimodal rope rotates halves, so the
rotated rows of queries and keys change their order. GLM-OCR has a layer more that predicts a later token.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.families.base.family import Dropped, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.layers import nextn_keys, nextn_rules, observe_nextn
from quantkit.families.base.multimodal import TEXT_PREFIXES, TOWERS, TOWERS_LEFT_OUT
from quantkit.families.glm4 import DEFAULTS, RULES
from quantkit.families.glm4 import FAMILY as GLM4
from quantkit.families.llama import ENDS


def _halves(heads: str) -> Callable[[Hyperparameters], Take]:
    """The rows of each head with its rotated pairs as two halves: first elements, then second ones."""

    def cut(sizes: Hyperparameters) -> Take:
        width = sizes.head_dim
        rotated = int(width * sizes.rope.get("partial_rotary_factor", 0.5))
        head = np.concatenate([np.arange(0, rotated, 2), np.arange(1, rotated, 2), np.arange(rotated, width)])
        return Take((np.arange(getattr(sizes, heads))[:, None] * width + head).reshape(-1), step=width)

    return cut


def _in_halves(rule: Rule) -> Rule:
    """The rule with the rows that llama.cpp's multimodal rope expects, where the config has sections."""
    heads = next((heads for role, heads in (("q_proj", "n_head"), ("k_proj", "n_head_kv")) if role in rule.source), "")
    return replace(rule, take=_halves(heads)) if heads else rule


_LAYER = tuple(_in_halves(rule) for rule in RULES if rule not in ENDS)

# transformers' Glm4vTextConfig and GlmOcrTextConfig.
_TEXT: dict[str, Any] = {
    **{name: value for name, value in DEFAULTS["glm4"].items() if name != "head_dim"},
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    return [*GLM4.keys(arch, sizes), *nextn_keys(arch, sizes)]


FAMILY = replace(
    GLM4,
    name="GLM-4V",
    models="GLM-4.1V-9B, GLM-4.6V-Flash, GLM-OCR, text only",
    architectures=("Glm4vForConditionalGeneration", "GlmOcrForConditionalGeneration"),
    rules=(*_LAYER, *nextn_rules(_LAYER), *ENDS),
    keys=_keys,
    observe=observe_nextn,
    defaults={
        "glm4v_text": _TEXT,
        "glm_ocr_text": {**_TEXT, "max_position_embeddings": 131072, "num_key_value_heads": 8},
    },
    dimensions=lambda sizes: {"gate_up": 2 * sizes.ffn, "two_hidden": 2 * sizes.hidden},
    text_models={
        "Glm4vForConditionalGeneration": ("Glm4ForCausalLM", "glm4v_text"),
        "GlmOcrForConditionalGeneration": ("Glm4ForCausalLM", "glm_ocr_text"),
    },
    rope_kinds=("default",),
    rename=TEXT_PREFIXES,
    dropped=(Dropped(TOWERS, TOWERS_LEFT_OUT),),
    forward=None,
)
