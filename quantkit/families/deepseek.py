"""DeepSeek-V2 and V3 (and R1): multi-head latent attention, and experts after a few dense layers.

Shape of the GGUF: llama.cpp's `deepseek2` architecture (src/models/deepseek2.cpp). It attends over the latent vectors,
as one key-value head. kv_b_proj is split in two: attn_k_b maps queries to latents (transposed head by head), attn_v_b
maps latents to values.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.families.base.family import Dropped, Family, Key, Rule, Take
from quantkit.families.base.fused import expert_halves
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.deepseek_config import DEFAULTS, is_v3, prepare
from quantkit.families.llama import ENDS
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import EXPERT, dense_after, flag, latent_scale, number_of

_LAYER, _ATTENTION = "model.layers.{layer}", "model.layers.{layer}.self_attn"
_MLP = "model.layers.{layer}.mlp"


def dimensions(sizes: Hyperparameters) -> dict[str, int]:
    """Widths of the projections of latent attention and of the shared experts."""
    config, heads = sizes.config, sizes.n_head
    rope, nope = size(config, "qk_rope_head_dim"), size(config, "qk_nope_head_dim")
    value, latent = size(config, "v_head_dim"), size(config, "kv_lora_rank")
    expert = optional_size(config, "moe_intermediate_size") or 0
    return {
        "q": heads * (nope + rope),
        "q_latent": optional_size(config, "q_lora_rank") or 0,
        "latent": latent,
        "latent_and_rope": latent + rope,
        "keys_and_values": heads * (nope + value),
        "values": heads * value,
        "expert_ffn": expert,
        "expert_gate_up": 2 * expert,
        "shared_ffn": expert * (optional_size(config, "n_shared_experts") or 0),
    }


def _compressed_queries(sizes: Hyperparameters) -> bool:
    return sizes.config.get("q_lora_rank") is not None


def _plain_queries(sizes: Hyperparameters) -> bool:
    return not _compressed_queries(sizes)


def _has_score_bias(sizes: Hyperparameters) -> bool:
    return is_v3(sizes.config)


def _of_heads(sizes: Hyperparameters, *, keys: bool) -> tuple[Take, ...]:
    """Rows of kv_b_proj. Each head has its key rows first, then its value rows."""
    nope, value = size(sizes.config, "qk_nope_head_dim"), size(sizes.config, "v_head_dim")
    first, count = (0, nope) if keys else (nope, value)
    starts = (head * (nope + value) + first for head in range(sizes.n_head))
    return tuple(Take(np.arange(start, start + count), transposed=keys) for start in starts)


def _key_heads(sizes: Hyperparameters) -> tuple[Take, ...]:
    return _of_heads(sizes, keys=True)


def _value_heads(sizes: Hyperparameters) -> tuple[Take, ...]:
    return _of_heads(sizes, keys=False)


def _half(half: int) -> Callable[[Hyperparameters], tuple[Take, ...]]:
    return lambda sizes: expert_halves(sizes.n_expert, size(sizes.config, "moe_intermediate_size"), half)


def _n_dense(sizes: Hyperparameters) -> int:
    if not sizes.n_expert:
        return sizes.n_layer
    return min(int(number(sizes.config, "first_k_dense_replace") or 0), sizes.n_layer)


def _dense_layers(sizes: Hyperparameters) -> Iterable[int]:
    return range(_n_dense(sizes))


def expert_layers(sizes: Hyperparameters) -> Iterable[int]:
    return range(_n_dense(sizes), sizes.n_layer)


def _extra_layers(sizes: Hyperparameters) -> Iterable[int]:
    """The layers that predict a second token ahead (multi-token prediction); they follow those of the model."""
    stated = sizes.config.get("num_nextn_predict_layers")
    more = (optional_size(sizes.config, "num_nextn_predict_layers") or 0) if stated else 0
    return range(sizes.n_layer, sizes.n_layer + more)


def matrix(source: str, target: str, *shape: str, **more: Any) -> Rule:
    return Rule(f"{source}.weight", f"blk.{{layer}}.{target}.weight", shape, **more)


ATTENTION = (
    matrix(f"{_LAYER}.input_layernorm", "attn_norm", "hidden"),
    matrix(f"{_ATTENTION}.q_proj", "attn_q", "q", "hidden", when=_plain_queries),
    matrix(f"{_ATTENTION}.q_a_proj", "attn_q_a", "q_latent", "hidden", when=_compressed_queries),
    matrix(f"{_ATTENTION}.q_a_layernorm", "attn_q_a_norm", "q_latent", when=_compressed_queries),
    matrix(f"{_ATTENTION}.q_b_proj", "attn_q_b", "q", "q_latent", when=_compressed_queries),
    matrix(f"{_ATTENTION}.kv_a_proj_with_mqa", "attn_kv_a_mqa", "latent_and_rope", "hidden"),
    matrix(f"{_ATTENTION}.kv_a_layernorm", "attn_kv_a_norm", "latent"),
    matrix(f"{_ATTENTION}.kv_b_proj", "attn_k_b", "keys_and_values", "latent", take=_key_heads),
    matrix(f"{_ATTENTION}.kv_b_proj", "attn_v_b", "keys_and_values", "latent", take=_value_heads),
    matrix(f"{_ATTENTION}.o_proj", "attn_output", "hidden", "values"),
    matrix(f"{_LAYER}.post_attention_layernorm", "ffn_norm", "hidden"),
)

FEED_FORWARD = (
    matrix(f"{_MLP}.gate_proj", "ffn_gate", "ffn", "hidden", layers=_dense_layers),
    matrix(f"{_MLP}.up_proj", "ffn_up", "ffn", "hidden", layers=_dense_layers),
    matrix(f"{_MLP}.down_proj", "ffn_down", "hidden", "ffn", layers=_dense_layers),
    matrix(f"{_MLP}.gate", "ffn_gate_inp", "n_expert", "hidden", layers=expert_layers),
    Rule(
        f"{_MLP}.gate.e_score_correction_bias",
        "blk.{layer}.exp_probs_b.bias",
        ("n_expert",),
        layers=expert_layers,
        when=_has_score_bias,
    ),
    matrix(f"{_MLP}.experts.{{expert}}.gate_proj", "ffn_gate_exps", "expert_ffn", "hidden", layers=expert_layers),
    matrix(f"{_MLP}.experts.{{expert}}.up_proj", "ffn_up_exps", "expert_ffn", "hidden", layers=expert_layers),
    matrix(f"{_MLP}.experts.{{expert}}.down_proj", "ffn_down_exps", "hidden", "expert_ffn", layers=expert_layers),
    # fused, as transformers 5 may save them
    *(
        Rule(
            f"{_MLP}.experts.gate_up_proj",
            f"blk.{{layer}}.ffn_{name}_exps.weight",
            ("n_expert", "expert_gate_up", "hidden"),
            take=_half(half),
            layers=expert_layers,
        )
        for half, name in enumerate(("gate", "up"))
    ),
    Rule(
        f"{_MLP}.experts.down_proj",
        "blk.{layer}.ffn_down_exps.weight",
        ("n_expert", "hidden", "expert_ffn"),
        layers=expert_layers,
    ),
    matrix(f"{_MLP}.shared_experts.gate_proj", "ffn_gate_shexp", "shared_ffn", "hidden", layers=expert_layers),
    matrix(f"{_MLP}.shared_experts.up_proj", "ffn_up_shexp", "shared_ffn", "hidden", layers=expert_layers),
    matrix(f"{_MLP}.shared_experts.down_proj", "ffn_down_shexp", "hidden", "shared_ffn", layers=expert_layers),
)


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys, attention with one latent key-value head, the experts' keys, in the converter's order."""
    config = sizes.config
    rope, latent = size(config, "qk_rope_head_dim"), size(config, "kv_lora_rank")
    latents = {"head_count_kv": 1, "key_length": latent + rope, "value_length": latent}
    result = [
        Key(key.name, key.kind, latents.get(key.name.removeprefix(f"{arch}.attention."), key.value))
        for key in base_keys(arch, sizes)
    ]
    result += [
        Key(f"{arch}.leading_dense_block_count", "u32", _n_dense(sizes)),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
    ]
    if (compressed := optional_size(config, "q_lora_rank")) is not None:
        result.append(Key(f"{arch}.attention.q_lora_rank", "u32", compressed))
    result += [
        Key(f"{arch}.attention.kv_lora_rank", "u32", latent),
        Key(f"{arch}.attention.key_length_mla", "u32", size(config, "qk_nope_head_dim") + rope),
        Key(f"{arch}.attention.value_length_mla", "u32", size(config, "v_head_dim")),
        # a model without experts states its feed-forward's width here
        Key(f"{arch}.expert_feed_forward_length", "u32", size(config, "moe_intermediate_size", "intermediate_size")),
        Key(f"{arch}.expert_shared_count", "u32", optional_size(config, "n_shared_experts") or 0),
    ]
    if (scale := number(config, "routed_scaling_factor")) is not None:
        result.append(Key(f"{arch}.expert_weights_scale", "f32", scale))
    if config.get("norm_topk_prob"):
        result.append(Key(f"{arch}.expert_weights_norm", "bool", True))
    result.append(Key(f"{arch}.rope.dimension_count", "u32", rope))
    if (whole := sizes.rope.get("mscale_all_dim")) is not None:
        # stored as a tenth; the loader multiplies by ten (llama.cpp, TAG_DEEPSEEK2_YARN_LOG_MUL_FIX)
        result.append(Key(f"{arch}.rope.scaling.yarn_log_multiplier", "f32", 0.1 * whole))
    return result


def _cautions(sizes: Hyperparameters) -> Iterator[str]:
    groups = optional_size(sizes.config, "n_group") or 1
    if sizes.config.get("topk_method") == "group_limited_greedy" and groups > 1:
        yield (
            f"the model ranks its {groups} expert groups by their best expert, but llama.cpp ranks them by their best"
            " two; some tokens are routed to other experts than in the checkpoint"
        )


def _groups(config: Config) -> tuple[int, int]:
    if config.get("topk_method") == "greedy":
        return 1, 1
    return int(given(config, "n_group", default=1)), int(given(config, "topk_group", default=1))


_SHARED_EXPERTS = FeedForward(
    at="mlp.shared_experts.",
    inner=lambda config: int(config["moe_intermediate_size"]) * int(given(config, "n_shared_experts", default=0)),
)
LATENT = Architecture(attention=Attention(latent=True, pairs="neighbours", scale=latent_scale))
# The attention scale of V2 follows the published model's code.
_V2 = replace(
    LATENT,
    experts=Experts(
        router="mlp.gate",
        expert=EXPERT,
        mlx="mlp.switch_mlp.",
        groups=_groups,
        normalised=lambda _: False,
        scale=number_of("routed_scaling_factor"),
        shared=_SHARED_EXPERTS,
        layers=dense_after,
    ),
    refused=lambda config: (
        "norm_topk_prob true, because published implementations disagree about it"
        if config.get("norm_topk_prob")
        else None
    ),
)
V3_FORWARD = replace(
    LATENT,
    experts=Experts(
        router="mlp.gate",
        expert=EXPERT,
        score="sigmoid",
        correction="mlp.gate.e_score_correction_bias",
        groups=_groups,
        group_by=2,
        normalised=flag("norm_topk_prob", True),
        scale=number_of("routed_scaling_factor", 2.5),
        shared=_SHARED_EXPERTS,
        layers=dense_after,
    ),
)

FAMILY = Family(
    name="DeepSeek-V2/V3",
    models="DeepSeek-V2, DeepSeek-V2-Lite, DeepSeek-V3, DeepSeek-R1, Moonlight",
    architectures=("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"),
    gguf_arch="deepseek2",
    rules=ATTENTION + FEED_FORWARD + ENDS,
    keys=keys,
    defaults=DEFAULTS,
    prepare=prepare,
    dimensions=dimensions,
    dropped=(
        Dropped(
            r"model\.layers\.{layer}\..*",
            "they predict a second token ahead, which llama.cpp's deepseek2 does not use",
            layers=_extra_layers,
        ),
    ),
    rope_kinds=("default", "yarn"),
    cautions=_cautions,
    # the widths follow from the others; layers for a later token are left out
    no_effect=("head_dim", "num_nextn_predict_layers", "qk_head_dim"),
    forward={"DeepseekV2ForCausalLM": _V2, "DeepseekV3ForCausalLM": V3_FORWARD},
)
