"""Youtu-LLM and the text model of Youtu-VL: DeepSeek's latent attention without experts.

Shape of the GGUF: llama.cpp's `deepseek2` architecture (src/models/deepseek2.cpp), all of whose layers are dense here.
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Dropped
from quantkit.families.base.multimodal import TOWERS, TOWERS_LEFT_OUT
from quantkit.families.base.refusals import only
from quantkit.families.deepseek import ATTENTION, FEED_FORWARD, LATENT
from quantkit.families.deepseek import FAMILY as DEEPSEEK
from quantkit.families.deepseek_config import prepare_attention
from quantkit.families.llama import ENDS

# transformers' YoutuConfig.
_YOUTU: dict[str, Any] = {
    "kv_lora_rank": 512,
    "max_position_embeddings": 131072,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_interleave": True,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "v_head_dim": 128,
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    prepare_attention(config, "Youtu")
    only(config, "n_routed_experts", family="Youtu")
    return config


FAMILY = replace(
    DEEPSEEK,
    name="Youtu",
    models="Youtu-LLM 2B, Youtu-VL 4B (text only)",
    architectures=("YoutuForCausalLM", "YoutuVLForConditionalGeneration"),
    rules=ATTENTION + FEED_FORWARD[:3] + ENDS,
    defaults={"youtu": _YOUTU, "youtu_vl": _YOUTU},
    prepare=_prepare,
    cautions=lambda sizes: (),
    dropped=(Dropped(TOWERS, TOWERS_LEFT_OUT),),
    no_effect=("head_dim", "qk_head_dim"),
    forward=LATENT,
)
