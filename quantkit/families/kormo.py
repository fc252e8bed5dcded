"""KORMo: Qwen 2's graph without biases; the checkpoint names the norms of a layer by what follows them.

Shape of the GGUF: llama.cpp's `qwen2` architecture (src/models/qwen2.cpp).
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.hyperparameters import size
from quantkit.families.base.refusals import only
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import BIASES, NORMS, PLAIN_MLP, PROJECTIONS
from quantkit.families.qwen2 import FAMILY as QWEN2
from quantkit.forward.description import Architecture

_AT = "model.layers.{layer}"
_ATTENTION_NORM, _FEED_NORM = NORMS


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "head_dim", size(config, "hidden_size") // size(config, "num_attention_heads"), family="KORMo")
    assert QWEN2.prepare is not None
    return QWEN2.prepare(config)


FAMILY = replace(
    QWEN2,
    name="KORMo",
    models="KORMo-10B",
    architectures=("KORMoForCausalLM",),
    rules=(
        replace(_ATTENTION_NORM, source=f"{_AT}.pre_attention_layernorm.weight"),
        replace(_FEED_NORM, source=f"{_AT}.pre_mlp_layernorm.weight"),
        *PROJECTIONS,
        *(replace(rule, required=False) for rule in BIASES),
        *PLAIN_MLP,
        *ENDS,
    ),
    defaults={},
    prepare=_prepare,
    rename=(),
    forward=Architecture(attention_norm="pre_attention_layernorm", feed_norm="pre_mlp_layernorm"),
)
