"""Kimi Linear: three layers of Kimi Delta Attention to one of latent attention without positions, and experts.

Shape of the GGUF: llama.cpp's `kimi-linear` architecture (src/models/kimi-linear.cpp). A layer without a key-value head
is one with Kimi Delta Attention. kv_b_proj is split as in DeepSeek's GGUF.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.adjust import negative_exp
from quantkit.families.base.experts import expert_dimensions, expert_rules, expert_width, shared_rules
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layer_kinds import layer_kinds
from quantkit.families.base.layers import dense_layers, routed_layers
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.families.deepseek import ATTENTION, matrix
from quantkit.families.deepseek import dimensions as latent_dimensions
from quantkit.families.qwen2 import PLAIN_MLP
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.kimi_parts import KimiDelta
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import dense_after, latent_scale, number_of, size_of

_FAMILY = "Kimi Linear"
_LAYER, _TO = "model.layers.{layer}", "blk.{layer}"
_ATTENTION, _MOE = f"{_LAYER}.self_attn", f"{_LAYER}.block_sparse_moe"
_NORMS = ("attn_norm", "ffn_norm")
# transformers' class knows these settings under either name; the second is that of published files
_ALIASES = {
    "max_position_embeddings": "model_max_length",
    "n_group": "num_expert_group",
    "n_shared_experts": "num_shared_experts",
    "norm_topk_prob": "moe_renormalize",
    "num_experts_per_tok": "num_experts_per_token",
    "num_local_experts": "num_experts",
}
_NESTED = {
    "head_dim": "linear_head_dim",
    "num_heads": "linear_num_heads",
    "short_conv_kernel_size": "linear_conv_kernel_dim",
}


def has_delta(config: Config, layer: int) -> bool:
    """Whether a layer has Kimi Delta Attention; config.json counts layers from 1."""
    return layer + 1 not in config["linear_attn_config"]["full_attn_layers"]


def layers_with(delta: bool) -> Callable[[Hyperparameters], Iterable[int]]:
    """The layers with Kimi Delta Attention, or those with latent attention."""
    return lambda sizes: [layer for layer in range(sizes.n_layer) if has_delta(sizes.config, layer) == delta]


WITH_DELTA, WITH_LATENT = layers_with(True), layers_with(False)


def attention_rules(own: Iterable[Rule], decay: Rule) -> tuple[Rule, ...]:
    """Latent attention, and the tensors of Kimi Delta Attention that all models share; `own` are a model's own."""
    shared = (
        *(matrix(f"{_ATTENTION}.{part}_proj", f"attn_{part}", "delta", "hidden") for part in "qkv"),
        *(matrix(f"{_ATTENTION}.{part}_conv1d", f"ssm_conv1d_{part}", "delta", "1", "delta_kernel") for part in "qkv"),
        matrix(f"{_ATTENTION}.b_proj", "ssm_beta", "n_head", "hidden"),
        Rule(f"{_ATTENTION}.dt_bias", f"{_TO}.ssm_dt.bias", ("delta",)),
        matrix(f"{_ATTENTION}.o_norm", "ssm_norm", "delta_width"),
        matrix(f"{_ATTENTION}.o_proj", "attn_output", "hidden", "delta"),
        decay,
        *own,
    )
    return (
        *(
            rule
            if any(norm in rule.target for norm in (".attn_norm.", ".ffn_norm."))
            else replace(rule, layers=WITH_LATENT)
            for rule in ATTENTION
        ),
        *(replace(rule, layers=WITH_DELTA) for rule in shared),
    )


_DECAY = Rule(
    f"{_ATTENTION}.A_log",
    f"{_TO}.ssm_a",
    ("1", "1", "n_head", "1"),
    adjust=negative_exp,
    reshaped=("n_head", "1"),
)
LOW_RANK_DECAY = (
    matrix(f"{_ATTENTION}.f_a_proj", "ssm_f_a", "delta_width", "hidden"),
    matrix(f"{_ATTENTION}.f_b_proj", "ssm_f_b", "delta", "delta_width"),
)
_GATE = (
    matrix(f"{_ATTENTION}.g_a_proj", "ssm_g_a", "delta_width", "hidden"),
    matrix(f"{_ATTENTION}.g_b_proj", "ssm_g_b", "delta", "delta_width"),
)
ROUTER = (
    matrix(f"{_MOE}.gate", "ffn_gate_inp", "n_expert", "hidden", layers=routed_layers),
    Rule(f"{_MOE}.gate.e_score_correction_bias", f"{_TO}.exp_probs_b.bias", ("n_expert",), layers=routed_layers),
)
ENDS = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("model.norm.weight", "output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden")),
)
SHARED_EXPERTS = shared_rules(f"{_MOE}.shared_experts", layers=routed_layers)
DENSE = tuple(replace(rule, layers=dense_layers) for rule in PLAIN_MLP)

# transformers' KimiLinearConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "kimi_linear": {
        "first_k_dense_replace": 1,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "kv_lora_rank": 512,
        "model_max_length": 1048576,
        "moe_intermediate_size": 1024,
        "moe_renormalize": True,
        "moe_router_activation_func": "sigmoid",
        "num_attention_heads": 32,
        "num_expert_group": 1,
        "num_experts": 256,
        "num_experts_per_token": 8,
        "num_hidden_layers": 27,
        "num_shared_experts": 1,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-5,
        "routed_scaling_factor": 2.446,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "v_head_dim": 128,
        "vocab_size": 163840,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have; state the settings under their published names.

    Raises:
        CheckpointError: a layer is of no kind or of two, or a size is missing.
        UnsupportedError: a setting that llama.cpp does not run.
    """
    for alias, name in _ALIASES.items():
        if (value := config.pop(alias, None)) is not None:
            config[name] = value
    n_layer = size(config, "num_hidden_layers")
    kinds = layer_kinds(config, n_layer, ("linear_attention", "full_attention"))
    config["linear_attn_config"] = _completed(config, kinds)
    if config.get("q_lora_rank") is not None:
        raise UnsupportedError(
            f"config.json: q_lora_rank is {config['q_lora_rank']!r}, but llama.cpp runs {_FAMILY} only without"
            " compressed queries; a GGUF cannot express this setting"
        )
    _dense_first(config, n_layer)
    prepare_kimi(config, _FAMILY)
    only(config, "hidden_act", *SILU, family=_FAMILY)
    only(config, "moe_renormalize", True, family=_FAMILY)
    if config.get("head_dim") is None:
        config["head_dim"] = size(config, "qk_rope_head_dim")
    return config


def _completed(config: Mapping[str, Any], kinds: list[str] | None) -> dict[str, Any]:
    """`linear_attn_config`, from transformers' own settings where the file lacks it."""
    nested = config.get("linear_attn_config")
    if nested is not None:
        return checked_layers(config)
    kinds = kinds or [
        "full_attention" if layer and layer % 4 == 0 else "linear_attention"
        for layer in range(size(config, "num_hidden_layers"))
    ]
    return {
        **{
            name: config.get(alias, default)
            for (name, alias), default in zip(_NESTED.items(), (128, 32, 4), strict=True)
        },
        "full_attn_layers": [number for number, kind in enumerate(kinds, 1) if kind == "full_attention"],
        "kda_layers": [number for number, kind in enumerate(kinds, 1) if kind == "linear_attention"],
    }


def checked_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """`linear_attn_config`, whose two lists must have every layer once.

    Raises:
        CheckpointError: it is missing, or a layer is in none of its lists or in both.
    """
    nested = config.get("linear_attn_config")
    if not isinstance(nested, Mapping):
        raise CheckpointError(f"config.json: linear_attn_config must be an object, not {nested!r}; correct it")
    lists = [nested.get(name) for name in ("full_attn_layers", "kda_layers")]
    numbers = [number for numbers in lists if isinstance(numbers, list) for number in numbers]
    n_layer = size(config, "num_hidden_layers")
    if any(type(number) is not int for number in numbers) or sorted(numbers) != list(range(1, n_layer + 1)):
        raise CheckpointError(
            f"config.json: full_attn_layers and kda_layers must have each of the layers 1 to {n_layer} once, not"
            f" {lists[0]!r} and {lists[1]!r}; correct them"
        )
    return dict(nested)


def _dense_first(config: dict[str, Any], n_layer: int) -> None:
    """State how many layers at the start have no experts, where a list has it."""
    kinds = layer_kinds(config, n_layer, ("dense", "sparse"), name="mlp_layer_types")
    if kinds is None:
        return
    config["first_k_dense_replace"] = dense = kinds.count("dense")
    if kinds != ["dense"] * dense + ["sparse"] * (n_layer - dense):
        raise UnsupportedError(
            f"config.json: mlp_layer_types has a dense layer after a sparse one, but llama.cpp runs {_FAMILY} only with"
            " dense layers first; a GGUF cannot express this setting"
        )


def prepare_kimi(config: dict[str, Any], family: str) -> None:
    """Refuse settings that none of llama.cpp's graphs of Kimi's models has."""
    nested, heads = config["linear_attn_config"], size(config, "num_attention_heads")
    only(nested, "num_heads", heads, family=family)
    for name in ("head_dim", "short_conv_kernel_size"):
        size(nested, name)
    only(config, "num_key_value_heads", heads, family=family)
    only(config, "attention_bias", False, family=family)
    only(config, "mla_use_nope", True, family=family)
    only(config, "moe_layer_freq", 1, family=family)
    only(config, "moe_router_activation_func", "sigmoid", family=family)
    only(config, "num_expert_group", 1, family=family)
    only(config, "num_nextn_predict_layers", 0, family=family)
    only(config, "tie_word_embeddings", False, family=family)
    for name in ("moe_intermediate_size", "num_experts", "num_experts_per_token", "num_shared_experts"):
        size(config, name)
    experts, used = size(config, "num_experts"), size(config, "num_experts_per_token")
    if used > experts:
        raise CheckpointError(
            f"config.json: num_experts_per_token {used} is more than num_experts {experts}; correct it"
        )


def dimensions(sizes: Hyperparameters) -> dict[str, int]:
    """Widths of latent attention, of Kimi Delta Attention and of experts."""
    nested, width = sizes.config["linear_attn_config"], expert_width(sizes)
    return {
        **latent_dimensions(sizes),
        **expert_dimensions(width, width * size(sizes.config, "num_shared_experts")),
        "delta": sizes.n_head * size(nested, "head_dim"),
        "delta_width": size(nested, "head_dim"),
        "delta_kernel": size(nested, "short_conv_kernel_size"),
    }


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys, then those of the two kinds of attention and of the experts, in the converter's order."""
    config, nested = sizes.config, sizes.config["linear_attn_config"]
    rope, latent = size(config, "qk_rope_head_dim"), size(config, "kv_lora_rank")
    heads = f"{arch}.attention.head_count_kv"
    changed = {
        heads: Key(heads, "i32s", [int(not has_delta(config, layer)) for layer in range(sizes.n_layer)]),
        f"{arch}.attention.key_length": Key(f"{arch}.attention.key_length", "u32", latent + rope),
    }
    return [
        *(changed.get(key.name, key) for key in base_keys(arch, sizes)),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.ssm.conv_kernel", "u32", size(nested, "short_conv_kernel_size")),
        Key(f"{arch}.kda.head_dim", "u32", size(nested, "head_dim")),
        Key(f"{arch}.attention.kv_lora_rank", "u32", latent),
        Key(f"{arch}.rope.dimension_count", "u32", rope),
        Key(f"{arch}.attention.key_length_mla", "u32", size(config, "qk_nope_head_dim") + rope),
        Key(f"{arch}.attention.value_length_mla", "u32", size(config, "v_head_dim")),
        Key(f"{arch}.expert_feed_forward_length", "u32", expert_width(sizes)),
        Key(f"{arch}.expert_shared_count", "u32", size(config, "num_shared_experts")),
        Key(f"{arch}.leading_dense_block_count", "u32", int(number(config, "first_k_dense_replace") or 0)),
        Key(f"{arch}.expert_weights_scale", "f32", number(config, "routed_scaling_factor") or 1.0),
    ]


_EXPERT = FeedForward(
    at="block_sparse_moe.experts.{}.", gate="w1", up="w3", down="w2", inner=size_of("moe_intermediate_size")
)
FORWARD = Architecture(
    attention=Attention(latent=True, pairs="neighbours", scale=latent_scale, rope=lambda _config, _layer: None),
    kimi_delta=KimiDelta(layers=has_delta),
    experts=Experts(
        router="block_sparse_moe.gate",
        expert=_EXPERT,
        score="sigmoid",
        correction="block_sparse_moe.gate.e_score_correction_bias",
        scale=number_of("routed_scaling_factor", 2.446),
        shared=FeedForward(
            at="block_sparse_moe.shared_experts.",
            inner=lambda config: int(config["moe_intermediate_size"]) * int(given(config, "num_shared_experts")),
        ),
        layers=dense_after,
    ),
    unpacked=lambda _: "GPTQModel has no Kimi Linear, and transformers stacks its experts in one tensor",
    not_mlx="mlx-lm has not been compared with it",
)

FAMILY = Family(
    name=_FAMILY,
    models="Kimi-Linear-48B-A3B",
    architectures=("KimiLinearForCausalLM", "KimiLinearModel"),
    gguf_arch="kimi-linear",
    rules=(
        *attention_rules((*LOW_RANK_DECAY, *_GATE), _DECAY),
        *DENSE,
        *ROUTER,
        *expert_rules(f"{_MOE}.experts", layers=routed_layers, names=("w1", "w3", "w2")),
        *SHARED_EXPERTS,
        *ENDS,
    ),
    keys=keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    dimensions=dimensions,
    # transformers saves a dense layer under the name of the experts
    rename=((r"\.block_sparse_moe\.(?=(?:gate|up|down)_proj\.)", ".mlp."),),
    rope_kinds=("default",),
    # it follows from the others
    no_effect=("qk_head_dim",),
    forward=FORWARD,
    traits=Traits(positions="none", kimi_delta=True),
)
