"""Qwen3-Omni, the text model of its thinker: Qwen3-MoE's graph with the positions of plain rope.

Shape of the GGUF: llama.cpp's `qwen3vlmoe` architecture (src/models/qwen3vlmoe.cpp). The converter states no layer that
the image tower adds to.
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Dropped, Key
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.multimodal import TEXT_PREFIXES, TOWERS, TOWERS_LEFT_OUT
from quantkit.families.qwen2moe import keys as mixture_keys
from quantkit.families.qwen3moe import DEFAULTS
from quantkit.families.qwen3moe import FAMILY as QWEN3_MOE
from quantkit.tokenizer.roles import TokenRoles

_NAME = "Qwen3OmniMoeForConditionalGeneration"

# transformers' Qwen3OmniMoeTextConfig.
_TEXT: dict[str, Any] = {
    **DEFAULTS["qwen3_moe"],
    "hidden_act": "silu",
    "head_dim": None,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_key_value_heads": 4,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    return [*mixture_keys(arch, sizes), Key(f"{arch}.n_deepstack_layers", "u32", 0)]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Qwen3-MoE's config, under the name of Qwen3-MoE's class."""
    assert QWEN3_MOE.prepare is not None
    return {**QWEN3_MOE.prepare(config), "model_type": "qwen3_moe"}


FAMILY = replace(
    QWEN3_MOE,
    name="Qwen3-Omni",
    models="Qwen3-Omni-30B-A3B, text of the thinker only",
    architectures=(_NAME,),
    gguf_arch="qwen3vlmoe",
    keys=_keys,
    prepare=_prepare,
    defaults={"qwen3_omni_moe_text": _TEXT},
    text_models={_NAME: ("Qwen3MoeForCausalLM", "qwen3_omni_moe_text")},
    rename=TEXT_PREFIXES,
    dropped=(Dropped(TOWERS, TOWERS_LEFT_OUT),),
    forward=None,
    token_roles=TokenRoles(instead={"bos": "<|im_end|>", "eos": "<|im_end|>"}),
)
