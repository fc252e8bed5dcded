"""StableLM 3B, 2 1.6B and 2 12B: layer norms, a quarter of each head rotated; the 12B's MLP beside its attention.

Shape of the GGUF: llama.cpp's `stablelm` architecture (src/models/stablelm.cpp), which recognises the 12B by the
absent second norm. StableLMEpochForCausalLM is the same model under the names of its first, remote code.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.families.base.family import Canonical, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import rope_keys
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import PLAIN_MLP, PROJECTIONS
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import LAYER_NORM, flag

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_THETA = 10000.0


def _is_serial(sizes: Hyperparameters) -> bool:
    return not sizes.config.get("use_parallel_residual")


def _has_head_norms(sizes: Hyperparameters) -> bool:
    return bool(sizes.config.get("qk_layernorm"))


RULES = (
    Rule(f"{_AT}.input_layernorm.weight", f"{_TO}.attn_norm.weight", ("hidden",)),
    Rule(f"{_AT}.input_layernorm.bias", f"{_TO}.attn_norm.bias", ("hidden",)),
    Rule(f"{_AT}.post_attention_layernorm.weight", f"{_TO}.ffn_norm.weight", ("hidden",), when=_is_serial),
    Rule(f"{_AT}.post_attention_layernorm.bias", f"{_TO}.ffn_norm.bias", ("hidden",), when=_is_serial),
    *PROJECTIONS,
    *(
        Rule(f"{_AT}.self_attn.{role}_proj.bias", f"{_TO}.attn_{role}.bias", (rows,), required=False)
        for role, rows in (("q", "q"), ("k", "kv"), ("v", "kv"))
    ),
    *(
        Rule(
            f"{_AT}.self_attn.{role}_layernorm.norms.{{{head}}}.weight",
            f"{_TO}.attn_{role}_norm.weight",
            ("head_dim",),
            when=_has_head_norms,
        )
        for role, head in (("q", "head"), ("k", "kv_head"))
    ),
    *PLAIN_MLP,
    *(rule for rule in ENDS if rule.required),
    Rule("model.norm.bias", "output_norm.bias", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden")),
)


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/stablelm.py), which omits the rotary base and scale.

    They are added if they differ from llama.cpp's assumptions.
    """
    config, rope = sizes.config, sizes.rope
    result = [
        Key(f"{arch}.context_length", "u32", size(config, "max_position_embeddings")),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.rope.dimension_count", "u32", int(rope.get("partial_rotary_factor", 0.25) * sizes.head_dim)),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.attention.head_count_kv", "u32", sizes.n_head_kv),
        Key(f"{arch}.use_parallel_residual", "bool", config.get("use_parallel_residual", True)),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", number(config, "layer_norm_eps", "norm_eps") or 1e-5),
    ]
    if rope.get("rope_theta", _THETA) != _THETA or rope["rope_type"] == "linear":
        result += rope_keys(arch, sizes)
    return result


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="StableLM")
    only(config, "tie_word_embeddings", False, family="StableLM")
    only(config, "rotary_scaling_factor", 1.0, family="StableLM")
    return config


_EPOCH_NAMES = {"norm_eps": "layer_norm_eps", "rope_pct": "partial_rotary_factor"}
_EPOCH_ONLY = ("auto_map", "rotary_scaling_factor", *_EPOCH_NAMES)


def _native_config(config: Mapping[str, Any]) -> dict[str, Any]:
    native = {key: value for key, value in config.items() if key not in _EPOCH_ONLY}
    native |= {new: config[old] for old, new in _EPOCH_NAMES.items() if old in config}
    return {**native, "architectures": ["StableLmForCausalLM"], "model_type": "stablelm"}


def _canonical(sizes: Hyperparameters) -> Canonical:
    """Tensors keep their names; only the settings of the first code are renamed."""
    kept = []
    for rule in RULES:
        names = [rule.source]
        for head, count in (("{head}", sizes.n_head), ("{kv_head}", sizes.n_head_kv)):
            if head in rule.source:
                names = [rule.source.replace(head, str(index)) for index in range(count)]
        kept += [Rule(name, name, rule.shape, required=rule.required, when=rule.when) for name in names]
    return Canonical(_native_config, tuple(kept))


# transformers' StableLmConfig, and StableLMEpochConfig of the published code.
DEFAULTS: dict[str, dict[str, Any]] = {
    "stablelm": {
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 32,
        "partial_rotary_factor": 0.25,
        "qk_layernorm": False,
        "rope_theta": _THETA,
        "use_parallel_residual": False,
        "use_qkv_bias": False,
    },
    "stablelm_epoch": {
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "rope_pct": 0.25,
        "rope_theta": _THETA,
        "use_parallel_residual": False,
    },
}

FORWARD = Architecture(
    norm=LAYER_NORM,
    attention=Attention(
        norms=("q_layernorm", "k_layernorm"), has_norms=flag("qk_layernorm"), normed="each", norm=LAYER_NORM
    ),
    variant=lambda config: {"parallel": True, "feed_norm": None} if config.get("use_parallel_residual") else {},
)

FAMILY = Family(
    name="StableLM",
    models="StableLM 3B, StableLM 2 1.6B/12B",
    architectures=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    gguf_arch="stablelm",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    rope_kinds=("default", "linear", "dynamic"),
    canonical=_canonical,
    # the tensors show the biases
    no_effect=("use_qkv_bias",),
    forward=FORWARD,
    traits=Traits(layer_norm=True, parallel_without_feed_norm=True),
)
