"""The GGUF keys that every architecture has, in the order of llama.cpp's converter (TextModel.set_gguf_parameters)."""

from collections.abc import Mapping

from quantkit.errors import UnsupportedError
from quantkit.families.base.family import Key
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size

# llama.cpp's LLAMA_EXPERT_GATING_FUNC_TYPE
_GATING = {"softmax": 1, "sigmoid": 2, "sqrtsoftplus": 4}


def base_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The keys that every architecture may have; a family appends its own."""
    config = sizes.config
    keys = [Key(f"{arch}.block_count", "u32", sizes.n_layer + sizes.n_draft)]
    if sizes.context is not None:
        keys.append(Key(f"{arch}.context_length", "u32", sizes.context))
    keys.append(Key(f"{arch}.embedding_length", "u32", sizes.hidden))
    if sizes.ffn:
        keys.append(Key(f"{arch}.feed_forward_length", "u32", sizes.ffn))
    keys.append(Key(f"{arch}.attention.head_count", "u32", sizes.n_head))
    if sizes.n_head_kv_given:
        keys.append(Key(f"{arch}.attention.head_count_kv", "u32", sizes.n_head_kv))
    keys += rope_keys(arch, sizes)
    if sizes.norm_eps is not None:
        keys.append(Key(f"{arch}.attention.layer_norm_rms_epsilon", "f32", sizes.norm_eps))
    if (eps := number(config, "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")) is not None:
        keys.append(Key(f"{arch}.attention.layer_norm_epsilon", "f32", eps))
    keys += _expert_keys(arch, sizes)
    if sizes.head_dim_given:
        keys += head_dim_keys(arch, sizes)
    return keys


def head_dim_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The keys for the width of a head."""
    return [
        Key(f"{arch}.attention.key_length", "u32", sizes.head_dim),
        Key(f"{arch}.attention.value_length", "u32", sizes.head_dim),
    ]


def _expert_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    config, keys = sizes.config, []
    if sizes.n_expert:
        keys.append(Key(f"{arch}.expert_count", "u32", sizes.n_expert))
    if sizes.n_expert_used:
        keys.append(Key(f"{arch}.expert_used_count", "u32", sizes.n_expert_used))
    if (groups := optional_size(config, "n_group")) is not None:
        keys.append(Key(f"{arch}.expert_group_count", "u32", groups))
    if (groups_used := optional_size(config, "topk_group")) is not None:
        keys.append(Key(f"{arch}.expert_group_used_count", "u32", groups_used))
    names = (
        *("score_function", "scoring_func", "score_func", "moe_router_activation", "moe_router_activation_func"),
        "expert_selection_fn",
    )
    gating = next((config[name] for name in names if config.get(name) is not None), None)
    if gating is not None:
        if gating not in _GATING:
            raise UnsupportedError(
                f"config.json: the router's score function is {gating!r}; llama.cpp supports {', '.join(_GATING)}"
            )
        keys.append(Key(f"{arch}.expert_gating_func", "u32", _GATING[gating]))
    return keys


def rope_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """Rope base and scaling. `dynamic` has no key, because the runtime chooses it for longer contexts."""
    rope, keys = sizes.rope, []
    kind = rope.get("rope_type")
    if kind in ("linear", "yarn"):
        keys += [
            Key(f"{arch}.rope.scaling.type", "str", kind),
            Key(f"{arch}.rope.scaling.factor", "f32", rope["factor"]),
        ]
    elif kind in ("su", "longrope"):
        keys.append(Key(f"{arch}.rope.scaling.type", "str", "longrope"))
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings") or sizes.context or 0
        keys.append(Key(f"{arch}.rope.scaling.original_context_length", "u32", original))
        for name, key in (
            ("extrapolation_factor", "yarn_ext_factor"),
            ("attention_factor", "yarn_attn_factor"),
            ("beta_fast", "yarn_beta_fast"),
            ("beta_slow", "yarn_beta_slow"),
        ):
            value = rope.get(name, rope.get("attn_factor") if name == "attention_factor" else None)
            if value is not None:
                keys.append(Key(f"{arch}.rope.scaling.{key}", "f32", value))
    if isinstance(sections := rope.get("mrope_section"), list):
        keys.append(Key(f"{arch}.rope.dimension_sections", "i32s", [*sections, 0, 0, 0, 0][:4]))
    if rope.get("rope_theta") is not None:
        keys.append(Key(f"{arch}.rope.freq_base", "f32", rope["rope_theta"]))
    local = number(sizes.config, "rope_local_base_freq", "local_rope_theta", "rope_local_theta", "swa_rope_theta")
    by_kind = (sizes.config.get("rope_parameters") or {}).get("sliding_attention")
    if local is None and isinstance(by_kind, Mapping):
        local = number(by_kind, "rope_theta")
    if local is not None:
        keys.append(Key(f"{arch}.rope.freq_base_swa", "f32", local))
    return keys
