"""Maincoder: Llama's shape with rope over neighbouring values and norms of queries and keys after it.

Shape of the GGUF: llama.cpp's `maincoder` architecture (src/models/maincoder.cpp), which has no biases.
"""

from typing import Any

from quantkit.families.base.family import Family, Key
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PLAIN_MLP, PROJECTIONS, ROPE_KINDS
from quantkit.families.qwen3 import HEAD_NORM_RULES
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import HEAD_NORMS


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="Maincoder")
    only(config, "attention_bias", False, family="Maincoder")
    only(config, "use_qk_norm", True, family="Maincoder")
    plain_yarn(config, "Maincoder")
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    width = [Key(f"{arch}.rope.dimension_count", "u32", sizes.head_dim)] if sizes.head_dim_given else []
    return [*base_keys(arch, sizes), *width]


FAMILY = Family(
    name="Maincoder",
    models="Maincoder-1B",
    architectures=("MaincoderForCausalLM",),
    gguf_arch="maincoder",
    rules=NORMS + PROJECTIONS + HEAD_NORM_RULES + PLAIN_MLP + ENDS,
    keys=_keys,
    prepare=_prepare,
    rope_kinds=ROPE_KINDS,
    forward=Architecture(attention=Attention(norms=HEAD_NORMS, norms_after_rope=True, pairs="neighbours")),
)
