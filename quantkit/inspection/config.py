"""Sizes from any config.json, by the names of all families; unknown sizes are None, nothing is refused."""

from collections.abc import Mapping
from typing import Any

from quantkit.families import positions_of
from quantkit.inspection.description import Shape

_NAMES: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "head_dim": ("head_dim", "kv_channels"),
    "ffn": ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim"),
    "expert_ffn": ("moe_intermediate_size",),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "experts_used": ("num_experts_per_tok", "num_experts_per_token", "moe_topk"),
    "experts_shared": ("n_shared_experts", "num_shared_experts"),
    "context": (
        *("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "model_max_length"),
        *("seq_length", "max_seq_len"),
    ),
    "sliding_window": ("sliding_window",),
    "vocab": ("vocab_size", "padded_vocab_size"),
}


def shape_of_config(config: Mapping[str, Any]) -> Shape:
    """The sizes of a config.json; a multimodal one gives those of its text model."""
    config = text_config(config)
    fields = {field: _whole(config, names) for field, names in _NAMES.items()}
    rotated, unrotated = _whole(config, ("qk_rope_head_dim",)), _whole(config, ("qk_nope_head_dim",))
    if rotated and (unrotated or fields["head_dim"] is None):
        # latent attention: each query and key has a rotated and an unrotated part
        fields["head_dim"] = rotated + (unrotated or 0)
    if fields["head_dim"] is None and fields["heads"] and fields["hidden"]:
        fields["head_dim"] = fields["hidden"] // fields["heads"]
    if config.get("multi_query") is True and fields["kv_heads"] is None:
        fields["kv_heads"] = 1
    if fields["kv_heads"] is None:
        fields["kv_heads"] = fields["heads"]
    if fields["experts_shared"] is None and _whole(config, ("shared_expert_intermediate_size",)):
        fields["experts_shared"] = 1
    if not fields["experts"]:
        fields.update(experts=None, experts_used=None, experts_shared=None, expert_ffn=None)
    if config.get("use_sliding_window") is False:
        fields["sliding_window"] = None
    positions, base, scaling, dimensions = _positions(config, fields["head_dim"])
    return Shape(
        **fields,
        positions=positions,
        rope_base=base,
        rope_scaling=scaling,
        rope_dimensions=(rotated or dimensions) if positions == "rope" else None,
    )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's settings of a multimodal config, merged over the outer settings."""
    nested = config.get("text_config") or config.get("llm_config")
    return {**config, **nested} if isinstance(nested, Mapping) else config


def _positions(
    config: Mapping[str, Any], head_dim: int | None
) -> tuple[str | None, float | None, str | None, int | None]:
    fixed = positions_of(config.get("model_type"))
    if config.get("alibi") is True or fixed == "alibi" or config.get("position_embedding") == "ALIBI":
        return "alibi", None, None, None
    if fixed in ("learned", "none"):
        return fixed, None, None, None
    nested = next((value for value in (config.get("rope_parameters"), config.get("rope_scaling")) if value), None)
    rope = dict(nested) if isinstance(nested, Mapping) else {}
    if isinstance(rope.get("full_attention"), Mapping):
        rope = dict(rope["full_attention"])
    # rope_parameters (transformers 5) overrides rope_theta, which may be the family's default.
    base = next(
        (v for v in (rope.get("rope_theta"), config.get("rope_theta"), config.get("rotary_emb_base")) if v), None
    )
    share = config.get("partial_rotary_factor", config.get("rotary_pct", rope.get("partial_rotary_factor")))
    dimensions = None
    if head_dim and isinstance(share, int | float) and 0 < share < 1:
        dimensions = int(head_dim * share)
    scaling = rope.get("rope_type") or rope.get("type")
    words = None
    if isinstance(scaling, str) and scaling != "default":
        words = scaling_words(scaling, rope.get("factor"), rope.get("original_max_position_embeddings"))
    base = float(base) if isinstance(base, int | float) and not isinstance(base, bool) else None
    return ("rope" if base or rope else None), base, words, dimensions


def scaling_words(kind: str, factor: Any, original: Any) -> str:
    """A rope scaling in words: "yarn x4 from 32768"."""
    words = kind
    if isinstance(factor, int | float) and not isinstance(factor, bool):
        words += f" x{factor:g}"
    if isinstance(original, int | float) and not isinstance(original, bool):
        words += f" from {int(original)}"
    return words


def _whole(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
