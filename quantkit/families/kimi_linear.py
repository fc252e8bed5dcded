"""Kimi Linear: three layers of Kimi Delta Attention to one of latent attention without positions, and experts.

Shape of the GGUF: llama.cpp's `kimi-linear` architecture (src/models/kimi-linear.cpp). A layer without a key-value head
is one with Kimi Delta Attention. kv_b_proj is split as in DeepSeek's GGUF.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from quantkit.families.base.adjust import negative_exp
from quantkit.families.base.experts import expert_dimensions, expert_rules, expert_width, shared_rules
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layers import dense_layers, routed_layers
from quantkit.families.base.traits import Traits
from quantkit.families.deepseek import ATTENTION, matrix
from quantkit.families.deepseek import dimensions as latent_dimensions
from quantkit.families.kimi_linear_config import DEFAULTS, NAME, has_delta, prepare
from quantkit.families.qwen2 import PLAIN_MLP
from quantkit.forward.config_keys import given
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.kimi_parts import KimiDelta
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import dense_after, latent_scale, number_of, size_of

_LAYER, _TO = "model.layers.{layer}", "blk.{layer}"
_ATTENTION, _MOE = f"{_LAYER}.self_attn", f"{_LAYER}.block_sparse_moe"
_NORMS = ("attn_norm", "ffn_norm")


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
    name=NAME,
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
    prepare=prepare,
    dimensions=dimensions,
    # transformers saves a dense layer under the name of the experts
    rename=((r"\.block_sparse_moe\.(?=(?:gate|up|down)_proj\.)", ".mlp."),),
    rope_kinds=("default",),
    # it follows from the others
    no_effect=("qk_head_dim",),
    forward=FORWARD,
    traits=Traits(positions="none", kimi_delta=True),
)
