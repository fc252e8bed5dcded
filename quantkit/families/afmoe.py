"""Trinity (AFMoE): gated attention, a window in three of four layers, the others without positions, sigmoid routing.

Shape of the GGUF: llama.cpp's `afmoe` architecture (src/models/afmoe.cpp). It scales the embedding by sqrt(hidden) and
gives rotary positions to three of four layers, whatever the keys say.
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.experts import expert_dimensions, expert_rules, expert_width, shared_rules
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS, llama_keys
from quantkit.families.qwen2 import PLAIN_MLP, PROJECTIONS, ROPE_KINDS
from quantkit.families.qwen3 import HEAD_NORM_RULES
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import EXPERT, FUSED_EXPERTS, HEAD_NORMS, number_of
from quantkit.tokenizer.roles import LLAMA_ROLES

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_MLP = f"{_AT}.mlp"
_FAMILY = "AFMoE"
# llama.cpp's constant (load_swa_pattern and n_no_rope_layer_step)
_FULL_EVERY = 4


def _dense(sizes: Hyperparameters) -> range:
    return range(min(int(number(sizes.config, "num_dense_layers") or 0), sizes.n_layer))


def _routed(sizes: Hyperparameters) -> range:
    return range(len(_dense(sizes)), sizes.n_layer)


RULES = (
    *(
        Rule(f"{_AT}.{source}.weight", f"{_TO}.{target}.weight", ("hidden",))
        for source, target in (
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "post_attention_norm"),
            ("pre_mlp_layernorm", "ffn_norm"),
            ("post_mlp_layernorm", "post_ffw_norm"),
        )
    ),
    *PROJECTIONS,
    *HEAD_NORM_RULES,
    Rule(f"{_AT}.self_attn.gate_proj.weight", f"{_TO}.attn_gate.weight", ("q", "hidden")),
    *(replace(rule, layers=_dense) for rule in PLAIN_MLP),
    Rule(f"{_MLP}.router.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden"), layers=_routed),
    Rule(f"{_MLP}.expert_bias", f"{_TO}.exp_probs_b.bias", ("n_expert",), layers=_routed),
    *expert_rules(f"{_MLP}.experts", layers=_routed),
    *shared_rules(f"{_MLP}.shared_experts", layers=_routed),
    *ENDS,
)

# transformers' AfmoeConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "afmoe": {
        "global_attn_every_n_layers": 4,
        "head_dim": 128,
        "max_position_embeddings": 16384,
        "moe_intermediate_size": 1408,
        "mup_enabled": False,
        "num_dense_layers": 1,
        "num_experts": 64,
        "num_experts_per_tok": 6,
        "num_shared_experts": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "route_scale": 1.0,
        "sliding_window": 1024,
        "tie_word_embeddings": False,
    }
}


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    ffn = expert_width(sizes)
    return expert_dimensions(ffn, ffn * size(sizes.config, "num_shared_experts"))


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    config = sizes.config
    result = [
        *llama_keys(arch, sizes),
        Key(f"{arch}.expert_shared_count", "u32", size(config, "num_shared_experts")),
        Key(f"{arch}.expert_feed_forward_length", "u32", expert_width(sizes)),
        Key(f"{arch}.leading_dense_block_count", "u32", len(_dense(sizes))),
    ]
    # llama.cpp's default is without the normalisation, which the model always has
    result.append(Key(f"{arch}.expert_weights_norm", "bool", True))
    return [
        *result,
        Key(f"{arch}.expert_weights_scale", "f32", number(config, "route_scale")),
        Key(f"{arch}.attention.sliding_window", "u32", size(config, "sliding_window")),
    ]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    n_layer = size(config, "num_hidden_layers")
    only(config, "hidden_act", *SILU, family=_FAMILY)
    only(config, "attention_bias", False, family=_FAMILY)
    only(config, "mup_enabled", True, family=_FAMILY)
    only(config, "route_norm", True, family=_FAMILY)
    only(config, "score_func", "sigmoid", family=_FAMILY)
    only(config, "n_group", 1, family=_FAMILY)
    only(config, "num_expert_groups", 1, family=_FAMILY)
    only(config, "global_attn_every_n_layers", _FULL_EVERY, family=_FAMILY)
    kinds = ["full_attention" if (n + 1) % _FULL_EVERY == 0 else "sliding_attention" for n in range(n_layer)]
    only(config, "layer_types", kinds, family=_FAMILY)
    plain_yarn(config, _FAMILY)
    experts, used = optional_size(config, "num_experts") or 0, size(config, "num_experts_per_tok")
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than num_experts {experts}")
    return config


def _slides(config: Config, layer: int) -> bool:
    kinds = config.get("layer_types")
    every = int(given(config, "global_attn_every_n_layers", default=_FULL_EVERY))
    return bool(kinds[layer] == "sliding_attention") if kinds else (layer + 1) % every != 0


FORWARD = Architecture(
    embedding_scale=lambda config: float(config["hidden_size"]) ** 0.5 if config.get("mup_enabled") else 1.0,
    after_attention="post_attention_layernorm",
    feed_norm="pre_mlp_layernorm",
    after_feed="post_mlp_layernorm",
    attention=Attention(
        norms=HEAD_NORMS,
        gate="gate_proj",
        rope=lambda config, layer: config if _slides(config, layer) else None,
        window=lambda config, layer: config.get("sliding_window") if _slides(config, layer) else None,
    ),
    experts=Experts(
        router="mlp.router.gate",
        expert=EXPERT,
        mlx="mlp.experts.",
        stacked=FUSED_EXPERTS,
        score="sigmoid",
        correction="mlp.expert_bias",
        scale=number_of("route_scale"),
        shared=FeedForward(
            at="mlp.shared_experts.",
            inner=lambda config: int(config["moe_intermediate_size"]) * int(config["num_shared_experts"]),
        ),
        layers=lambda config, layer: layer >= int(given(config, "num_dense_layers", default=1)),
    ),
)

FAMILY = Family(
    name="AFMoE",
    models="Trinity Nano, Trinity Mini, Trinity Large",
    architectures=("AfmoeForCausalLM",),
    gguf_arch="afmoe",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    dimensions=_dimensions,
    rope_kinds=ROPE_KINDS,
    forward=FORWARD,
    traits=Traits(sliding_every=4, scaled_embedding=True),
    token_roles=LLAMA_ROLES,
)
