"""Solar Open: GLM-4.5's graph, with rotary positions over the whole head and experts in every layer.

Shape of the GGUF: llama.cpp's `glm4moe` architecture (src/models/glm4-moe.cpp).
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.refusals import only
from quantkit.families.glm4moe import DEFAULTS, FORWARD, prepare
from quantkit.families.glm4moe import FAMILY as GLM4_MOE
from quantkit.tokenizer.roles import TokenRoles

# transformers' SolarOpenConfig.
_SOLAR: dict[str, Any] = {
    **DEFAULTS["glm4_moe"],
    "first_k_dense_replace": None,
    "head_dim": 128,
    "hidden_act": "silu",
    "moe_intermediate_size": 1280,
    "num_nextn_predict_layers": None,
    "partial_rotary_factor": 1.0,
    "rope_theta": 1000000.0,
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "first_k_dense_replace", 0, family="Solar Open")
    only(config, "use_qk_norm", False, family="Solar Open")
    return prepare(config)


_END = "<|endoftext|>"

FAMILY = replace(
    GLM4_MOE,
    name="Solar Open",
    models="Solar-Open-100B",
    architectures=("SolarOpenForCausalLM",),
    defaults={"solar_open": _SOLAR},
    prepare=_prepare,
    no_effect=(),
    forward=FORWARD,
    token_roles=TokenRoles(also={"bos": "<|startoftext|>", "eos": _END, "eot": _END, "unk": "<unk>"}),
)
