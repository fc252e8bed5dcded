"""PLM: DeepSeek-V2's latent attention, and a feed-forward of two matrices with the square of ReLU between them.

Shape of the GGUF: llama.cpp's `plm` architecture (src/models/plm.cpp). It keeps kv_b_proj whole, and its output head is
the embedding.
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Family, Key
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import only
from quantkit.families.deepseek import ATTENTION, LATENT, dimensions, matrix
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import PLAIN_MLP
from quantkit.forward.description import FeedForward

_FAMILY = "PLM"
_KV = "model.layers.{layer}.self_attn.kv_b_proj"

# PLMConfig of the published code.
DEFAULTS: dict[str, dict[str, Any]] = {
    "plm": {
        "hidden_act": "relu2",
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
        "v_head_dim": 128,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not run; set head_dim to the rotary width."""
    only(config, "hidden_act", "relu2", family=_FAMILY)
    only(config, "attention_bias", False, family=_FAMILY)
    only(config, "mlp_bias", False, family=_FAMILY)
    only(config, "q_lora_rank", None, family=_FAMILY)
    only(config, "num_key_value_heads", size(config, "num_attention_heads"), family=_FAMILY)
    only(config, "tie_word_embeddings", True, family=_FAMILY)
    return {**config, "head_dim": size(config, "qk_rope_head_dim")}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys and those of latent attention, in the order of llama.cpp's converter (conversion/plm.py)."""
    config, rope = sizes.config, size(sizes.config, "qk_rope_head_dim")
    own = {
        "vocab_size": sizes.vocab,
        "attention.kv_lora_rank": size(config, "kv_lora_rank"),
        "attention.key_length": size(config, "qk_nope_head_dim") + rope,
        "attention.value_length": size(config, "v_head_dim"),
        "rope.dimension_count": rope,
    }
    latent = [Key(f"{arch}.{name}", "u32", value) for name, value in own.items()]
    replaced = {key.name for key in latent}
    return [*(key for key in base_keys(arch, sizes) if key.name not in replaced), *latent]


FAMILY = Family(
    name=_FAMILY,
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
    defaults=DEFAULTS,
    prepare=_prepare,
    dimensions=dimensions,
    rope_kinds=("default",),
    no_effect=("head_dim",),
    forward=replace(LATENT, feed=FeedForward(gate=None, default_activation="relu2"), tied=True),
)
