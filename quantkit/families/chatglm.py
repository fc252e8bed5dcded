"""ChatGLM2, ChatGLM3 and GLM-4-9B in the layout of their remote code; transformers' GLM computes the same.

Shape of the GGUF: llama.cpp's `chatglm` architecture (src/models/chatglm.cpp), which keeps queries, keys and values in
one matrix, and gate and up in another.
"""

from collections.abc import Callable, Mapping
from typing import Any

from quantkit.families.base.family import Canonical, Dropped, Family, Key, Rule, Take
from quantkit.families.base.fused import rows
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.native_config import shared
from quantkit.families.base.refusals import only
from quantkit.families.glm import FAMILY as GLM

_AT, _TO, _NATIVE = "encoder.layers.{layer}", "blk.{layer}", "model.layers.{layer}"
_QKV = f"{_AT}.self_attention.query_key_value"

# source, llama.cpp's name, transformers' name, shape
_AS_THEY_STAND = (
    (f"{_AT}.input_layernorm", f"{_TO}.attn_norm", f"{_NATIVE}.input_layernorm", ("hidden",)),
    (f"{_AT}.self_attention.dense", f"{_TO}.attn_output", f"{_NATIVE}.self_attn.o_proj", ("hidden", "q")),
    (f"{_AT}.post_attention_layernorm", f"{_TO}.ffn_norm", f"{_NATIVE}.post_attention_layernorm", ("hidden",)),
    (f"{_AT}.mlp.dense_h_to_4h", f"{_TO}.ffn_up", f"{_NATIVE}.mlp.gate_up_proj", ("gate_up", "hidden")),
    (f"{_AT}.mlp.dense_4h_to_h", f"{_TO}.ffn_down", f"{_NATIVE}.mlp.down_proj", ("hidden", "ffn")),
    ("embedding.word_embeddings", "token_embd", "model.embed_tokens", ("vocab", "hidden")),
    ("encoder.final_layernorm", "output_norm", "model.norm", ("hidden",)),
    ("output_layer", "output", "lm_head", ("vocab", "hidden")),
)

RULES = (
    Rule(f"{_QKV}.weight", f"{_TO}.attn_qkv.weight", ("qkv", "hidden")),
    Rule(f"{_QKV}.bias", f"{_TO}.attn_qkv.bias", ("qkv",)),
    *(Rule(f"{source}.weight", f"{target}.weight", shape) for source, target, _, shape in _AS_THEY_STAND),
)


def _part(number: int) -> Callable[[Hyperparameters], Take]:
    """Queries, keys or values from query_key_value, which has them in this order."""

    def take(sizes: Hyperparameters) -> Take:
        q, kv = sizes.dimension("q"), sizes.dimension("kv")
        return rows(*((0, q), (q, kv), (q + kv, kv))[number])

    return take


_NATIVE_RULES = (
    *(
        Rule(f"{_QKV}.{kind}", f"{_NATIVE}.self_attn.{name}_proj.{kind}", shape, take=_part(number))
        for number, name in enumerate("qkv")
        for kind, shape in (("weight", ("qkv", "hidden")), ("bias", ("qkv",)))
    ),
    *(Rule(f"{source}.weight", f"{native}.weight", shape) for source, _, native, shape in _AS_THEY_STAND),
)

# ChatGLMConfig of the published code.
DEFAULTS: dict[str, dict[str, Any]] = {
    "chatglm": {
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "apply_residual_connection_post_layernorm": False,
        "kv_channels": 128,
        "layernorm_epsilon": 1e-5,
        "multi_query_attention": False,
        "multi_query_group_num": 1,
        "original_rope": True,
        "post_layer_norm": True,
        "rmsnorm": True,
        "rope_ratio": 1,
        "seq_length": 2048,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """The standard names; refuse what neither llama.cpp's graph nor transformers' GLM has."""
    family = "ChatGLM"
    for name in ("rmsnorm", "post_layer_norm", "original_rope", "multi_query_attention", "add_qkv_bias"):
        only(config, name, True, family=family)
    for name in ("add_bias_linear", "apply_residual_connection_post_layernorm", "tie_word_embeddings"):
        only(config, name, False, family=family)
    only(config, "quantization_bit", 0, family=family)
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    only(config, "kv_channels", hidden // heads, family=family)
    return {
        **config,
        "hidden_act": "silu",
        "intermediate_size": size(config, "ffn_hidden_size"),
        "max_position_embeddings": size(config, "seq_length"),
        "num_hidden_layers": size(config, "num_layers"),
        "num_key_value_heads": size(config, "multi_query_group_num"),
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": number(config, "layernorm_epsilon"),
        "rope_theta": 10000.0 * (number(config, "rope_ratio") or 1.0),
        "tie_word_embeddings": False,
        "vocab_size": optional_size(config, "padded_vocab_size", "vocab_size"),
    }


def _native_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **shared(config),
        "architectures": ["GlmForCausalLM"],
        "attention_bias": True,
        "head_dim": config["hidden_size"] // config["num_attention_heads"],
        "model_type": "glm",
        "partial_rotary_factor": 0.5,
        "rope_theta": config["rope_theta"],
        "tie_word_embeddings": False,
    }


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/chatglm.py)."""
    return GLM.keys(arch, sizes)


FAMILY = Family(
    name="ChatGLM",
    models="ChatGLM2-6B, ChatGLM3-6B, GLM-4-9B-chat, LongWriter, CodeGeeX4",
    architectures=("ChatGLMModel", "ChatGLMForConditionalGeneration"),
    gguf_arch="chatglm",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    rename=((r"^transformer\.", ""),),
    # a buffer that every runtime computes
    dropped=(Dropped(r"(transformer\.)?rotary_pos_emb\.inv_freq"),),
    dimensions=lambda sizes: {
        "gate_up": 2 * sizes.ffn,
        "qkv": (sizes.n_head + 2 * sizes.n_head_kv) * sizes.head_dim,
    },
    rope_kinds=("default",),
    canonical=lambda sizes: Canonical(_native_config, _NATIVE_RULES),
    traits=GLM.traits,
    token_roles=GLM.token_roles,
)
