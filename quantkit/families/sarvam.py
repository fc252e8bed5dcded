"""Sarvam-MoE: Ling 2.0's graph with rotary positions over the whole head.

Shape of the GGUF: llama.cpp's `bailingmoe2` architecture (src/models/bailingmoe2.cpp). The bias for the choice of
experts is stored with a mean of zero; this does not change the choice.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.families.bailingmoe2 import FAMILY as LING2
from quantkit.families.bailingmoe2 import FORWARD
from quantkit.families.base.family import Rule
from quantkit.families.base.refusals import only


def _centred(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(1, experts) or (experts, 1) without its mean; the sum goes from first to last in float32, as the converter's."""
    total = rows.reshape(-1).cumsum(dtype=np.float32)[-1]
    return np.asarray(rows - total / np.float32(rows.size), dtype=np.float32)


def _rule(rule: Rule) -> Rule:
    return replace(rule, adjust=_centred) if rule.source.endswith("expert_bias") else rule


# transformers' SarvamMoEConfig.
_SARVAM: dict[str, Any] = {
    **LING2.defaults["bailing_moe_v2"],
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "moe_intermediate_size": 1024,
    "n_group": 1,
    "num_experts": 128,
    "num_experts_per_tok": 6,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": None,
    "partial_rotary_factor": 1.0,
    "rope_theta": 10000.0,
    "routed_scaling_factor": 2.5,
    "topk_group": 1,
    "use_qk_norm": True,
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    config.setdefault("partial_rotary_factor", 1.0)
    only(config, "partial_rotary_factor", 1.0, family="Sarvam")
    assert LING2.prepare is not None
    return LING2.prepare(config)


FAMILY = replace(
    LING2,
    name="Sarvam",
    models="Sarvam-30B",
    architectures=("SarvamMoEForCausalLM", "modeling_sarvam_moe.SarvamMoEForCausalLM"),
    rules=tuple(_rule(rule) for rule in LING2.rules),
    defaults={"sarvam_moe": _SARVAM},
    prepare=_prepare,
    forward=FORWARD,
)
