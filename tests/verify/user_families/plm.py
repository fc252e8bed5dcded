"""PLM, which is not a family of quantkit: llama.cpp's graph of it aborts with flash attention (src/models/plm.cpp).

DeepSeek-V2's latent attention with a whole kv_b_proj, two matrices with the square of ReLU between them, a tied head.
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Family, Key
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.keys import base_keys
from quantkit.families.deepseek import ATTENTION, LATENT, dimensions, matrix
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import PLAIN_MLP
from quantkit.forward.description import FeedForward

_KV = "model.layers.{layer}.self_attn.kv_b_proj"


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "head_dim": size(config, "qk_rope_head_dim")}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    config, rope = sizes.config, size(sizes.config, "qk_rope_head_dim")
    own = {
        "vocab_size": sizes.vocab,
        "attention.kv_lora_rank": size(config, "kv_lora_rank"),
        "attention.key_length": size(config, "qk_nope_head_dim") + rope,
        "attention.value_length": size(config, "v_head_dim"),
        "rope.dimension_count": rope,
    }
    keys = {key.name: key for key in base_keys(arch, sizes)}
    return list((keys | {f"{arch}.{name}": Key(f"{arch}.{name}", "u32", own[name]) for name in own}).values())


FAMILY = Family(
    name="PLM",
    models="PLM 1.8B",
    architectures=("PLMForCausalLM",),
    gguf_arch="plm",
    rules=(
        *(rule for rule in ATTENTION if rule.source != f"{_KV}.weight"),
        matrix(_KV, "attn_kv_b", "keys_and_values", "latent"),
        *(rule for rule in PLAIN_MLP if "gate_proj" not in rule.source),
        *ENDS,
    ),
    keys=_keys,
    prepare=_prepare,
    dimensions=dimensions,
    rope_kinds=("default",),
    forward=replace(LATENT, feed=FeedForward(gate=None, default_activation="relu2"), tied=True),
)
