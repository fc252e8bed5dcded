"""Sizes and numbers of config.json, under one name for all families, checked before use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.gguf.vocabulary import MAX_TOKENS

ROPE_KINDS = ("default", "linear", "yarn", "llama3", "dynamic")

_INT32_MAX = 2**31 - 1
_FLOAT32_MAX = (2 - 2**-23) * 2.0**127

# llama.cpp aborts at more (LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS of src/llama-hparams.h).
DRAFT_LAYERS = ("mtp_num_hidden_layers", "num_nextn_predict_layers")
"""The keys of config.json for the number of layers that predict a later token."""
_MAX_LAYERS = 512
_MAX_EXPERTS = 1024
_LLAMA_CPP_AT_MOST = "but llama.cpp runs at most"
# Upper bounds well above every published model; larger counts would keep a plan or a conversion busy for hours.
_MAX_EXPERT_LAYERS = 200_000
_MAX_HEADS = 10_000
_MAX_WIDTH = 1 << 20
_BOUNDS = {
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_nextn_predict_layers"), _MAX_LAYERS
    ),
    **dict.fromkeys(
        ("num_local_experts", "num_experts", "n_routed_experts", "n_shared_experts", "n_group", "topk_group"),
        _MAX_EXPERTS,
    ),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token"), _MAX_EXPERTS),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "num_kv_heads", "n_head_kv"), _MAX_HEADS
    ),
    **dict.fromkeys(("hidden_size", "n_embd", "n_embed", "dim", "intermediate_size", "n_inner", "ffn_dim"), _MAX_WIDTH),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), _MAX_WIDTH),
    **dict.fromkeys(("shared_intermediate_size", "head_dim", "kv_channels", "v_head_dim"), _MAX_WIDTH),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "kv_lora_rank", "q_lora_rank"), _MAX_WIDTH),
    "vocab_size": MAX_TOKENS,
}
_COUNTS = (
    ("hidden_size", "n_embd", "dim"),
    ("num_attention_heads", "n_head", "n_heads"),
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
)
_ROPE_NUMBERS = (
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "extrapolation_factor",
    "attention_factor",
    "attn_factor",
    "beta_fast",
    "beta_slow",
    "partial_rotary_factor",
)


@dataclass(frozen=True)
class Hyperparameters:
    """Sizes of a decoder-only transformer (counts, not bytes).

    `n_draft`: layers after these that predict a later token (multi-token prediction). `head_dim_given` and
    `n_head_kv_given`: config.json states them. `rope` has the shape of transformers 5's `rope_parameters`. `config` is
    the completed config.json, for settings that only one family reads.
    """

    n_layer: int
    hidden: int
    n_head: int
    n_head_kv: int
    head_dim: int
    ffn: int
    vocab: int
    n_expert: int = 0
    n_expert_used: int = 0
    n_draft: int = 0
    context: int | None = None
    tied: bool = False
    head_dim_given: bool = False
    n_head_kv_given: bool = True
    norm_eps: float | None = None
    rope: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def has_dimension(self, name: str) -> bool:
        """Whether `dimension` knows the name."""
        return name.isdecimal() or name in ("q", "kv") or hasattr(self, name)

    def dimension(self, name: str) -> int:
        """Size of a dimension that a tensor rule names: a number, a field, `q` or `kv` (projection rows).

        Raises:
            CheckpointError: config.json does not state it.
        """
        if name.isdecimal():
            return int(name)
        if name == "q":
            return self.n_head * self.head_dim
        if name == "kv":
            return self.n_head_kv * self.head_dim
        if name == "context" and self.context is None:
            return size(self.config, "max_position_embeddings")
        return int(getattr(self, name))

    @property
    def n_stream(self) -> int:
        """AltUp's streams of hidden states but the first."""
        return (optional_size(self.config, "altup_num_inputs") or 1) - 1


def check_counts(config: Mapping[str, Any]) -> None:
    """Check the counts that a family's `prepare` may compute with; lists of a count for each layer pass.

    Raises:
        CheckpointError: a count is not a positive whole number, or it is too large.
    """
    for names in _COUNTS:
        if not any(isinstance(config.get(name), list) for name in names):
            optional_size(config, *names)


def read_hyperparameters(config: Mapping[str, Any], rope_kinds: tuple[str, ...] = ROPE_KINDS) -> Hyperparameters:
    """Read the sizes from a config.json, by Hugging Face's names and their common aliases.

    `rope_kinds` are the rope types that the family's GGUF can express.

    Raises:
        CheckpointError: a size is missing, not a positive whole number, too large, or inconsistent with another one.
        UnsupportedError: a GGUF of this family cannot express the rope scaling.
    """
    hidden = size(config, "hidden_size", "n_embd", "dim")
    n_head = size(config, "num_attention_heads", "n_head", "n_heads")
    kv_given = config.get("num_key_value_heads") is not None
    n_head_kv = size(config, "num_key_value_heads") if kv_given else n_head
    head_dim_value = config.get("head_dim")
    if head_dim_value is None and hidden % n_head:
        raise CheckpointError(
            f"config.json: hidden_size {hidden} does not divide by num_attention_heads {n_head} and head_dim is absent;"
            " correct one of the sizes or add head_dim"
        )
    if n_head % n_head_kv:
        raise CheckpointError(
            f"config.json: num_attention_heads {n_head} does not divide by num_key_value_heads {n_head_kv}; correct one"
            " of them"
        )
    head_dim = size(config, "head_dim") if head_dim_value is not None else hidden // n_head
    if head_dim % 2:
        raise CheckpointError(
            f"config.json: head_dim is {head_dim}; it must be even, because rotary positions rotate pairs of values"
        )
    n_layer = size(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    n_expert, n_expert_used = _experts(config, n_layer)
    n_draft = _draft_layers(config, n_layer)
    return Hyperparameters(
        n_layer=n_layer,
        hidden=hidden,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        ffn=_feed_forward(config, n_expert),
        vocab=size(config, "vocab_size"),
        n_expert=n_expert,
        n_expert_used=n_expert_used,
        n_draft=n_draft,
        context=optional_size(
            config,
            "max_position_embeddings",
            "n_ctx",
            "n_positions",
            "max_length",
            "max_sequence_length",
            "model_max_length",
        ),
        tied=bool(config.get("tie_word_embeddings", False)),
        head_dim_given=head_dim_value is not None,
        n_head_kv_given=kv_given,
        norm_eps=number(config, "rms_norm_eps", "norm_eps"),
        rope=_rope(config, rope_kinds),
        config=config,
    )


def _experts(config: Mapping[str, Any], n_layer: int) -> tuple[int, int]:
    """Experts of a layer, and how many a token uses; both 0 without experts."""
    n_expert = optional_size(config, "num_local_experts", "num_experts", "n_routed_experts") or 0
    n_expert_used = optional_size(config, "num_experts_per_tok", "num_experts_per_token") or 0
    if n_expert and config.get("num_experts_per_tok") == 0:
        raise CheckpointError(
            f"config.json: num_experts_per_tok is 0 of {n_expert} experts; set it to the experts that a token uses"
        )
    if n_layer * n_expert > _MAX_EXPERT_LAYERS:
        raise CheckpointError(
            f"config.json: {n_layer} layers of {n_expert} experts are {n_layer * n_expert} experts in total; at most"
            f" {_MAX_EXPERT_LAYERS} are supported"
        )
    return n_expert, n_expert_used


def _draft_layers(config: Mapping[str, Any], n_layer: int) -> int:
    """Layers for later tokens, which follow the `n_layer` of the model."""
    n_draft = int(number(config, *DRAFT_LAYERS) or 0)
    if n_layer + n_draft > _MAX_LAYERS:
        raise CheckpointError(
            f"config.json has {n_layer} layers and {n_draft} for later tokens, {_LLAMA_CPP_AT_MOST} {_MAX_LAYERS} in"
            " all; correct it"
        )
    return n_draft


def _feed_forward(config: Mapping[str, Any], n_expert: int) -> int:
    """The width of a dense feed-forward; 0 for a mixture whose config.json states none, because no layer is dense."""
    names = ("intermediate_size", "n_inner", "ffn_dim")
    return (optional_size(config, *names) or 0) if n_expert else size(config, *names)


def _rope(config: Mapping[str, Any], kinds: tuple[str, ...]) -> dict[str, Any]:
    """Rope settings in the shape of transformers 5's `rope_parameters`, from either generation of config.json."""
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(settings, Mapping):
        raise CheckpointError(f"config.json: rope settings must be an object, not {settings!r}; correct it")
    rope = dict(settings)
    if isinstance(rope.get("full_attention"), Mapping):
        rope = dict(rope["full_attention"])
    # transformers treats a setting of null as absent
    rope = {name: value for name, value in rope.items() if value is not None}
    theta = number(config, "rope_theta", "rotary_emb_base")
    if theta is not None:
        rope.setdefault("rope_theta", theta)
    partial = number(config, "partial_rotary_factor", "rope_pct", "rope_percent")
    if partial is not None:
        rope.setdefault("partial_rotary_factor", partial)
    kind = rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in kinds:
        raise UnsupportedError(
            f"config.json: a GGUF of this family cannot express rope scaling {kind!r}; it can express"
            f" {', '.join(kinds)}"
        )
    needed = {"linear": ("factor",), "yarn": ("factor",), "llama3": ("factor",)}.get(kind, ())
    for name, value in rope.items():
        if name in _ROPE_NUMBERS and not _is_positive(value):
            raise CheckpointError(
                f"config.json: rope {name} must be a positive number, not {_shown(value)}; correct it"
            )
    for name in needed:
        if rope.get(name) is None:
            raise CheckpointError(f"config.json: rope scaling {kind!r} needs a {name}; add it")
    original = rope.get("original_max_position_embeddings") or optional_size(config, "original_max_position_embeddings")
    if original is not None:
        rope["original_max_position_embeddings"] = int(original)
    return rope


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _FLOAT32_MAX


def _shown(value: object) -> str:
    """The value for a message; an integer of thousands of digits is cut, which Python refuses to print."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def size(config: Mapping[str, Any], *names: str) -> int:
    """The count that config.json has under one of `names`; CheckpointError if it is absent or invalid."""
    value = optional_size(config, *names)
    if value is None:
        raise CheckpointError(f"config.json has no {names[0]}; add it, the tensor shapes depend on it")
    return value


def optional_size(config: Mapping[str, Any], *names: str) -> int | None:
    """The count that config.json has under one of `names`, or None; CheckpointError if it is invalid or too large."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        # Some exporters write 4096.0; 0 experts means a model without experts.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value == 0 and "expert" in name:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise CheckpointError(
                f"config.json: {name} must be a positive whole number, not {_shown(value)}; correct it"
            )
        if value > (bound := _BOUNDS.get(name, _INT32_MAX)):
            limit = (
                f"{_LLAMA_CPP_AT_MOST} {bound}"
                if bound in (_MAX_LAYERS, _MAX_EXPERTS)
                else f"but at most {bound} is supported"
            )
            raise CheckpointError(f"config.json: {name} is {_shown(value)}, {limit}; correct it")
        return value
    return None


def number(config: Mapping[str, Any], *names: str) -> float | None:
    """The number that config.json has under one of `names`, or None; CheckpointError if it is not a finite number."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"config.json: {name} must be a number, not {_shown(value)}; correct it")
        if not abs(value) <= _FLOAT32_MAX:  # true for NaN too
            raise CheckpointError(f"config.json: {name} must be a finite 32-bit float, not {_shown(value)}; correct it")
        return float(value)
    return None
