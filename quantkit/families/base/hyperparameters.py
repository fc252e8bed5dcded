"""The numbers of config.json under one name each, whatever the family calls them, checked before use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError

ROPE_KINDS = ("default", "linear", "yarn", "llama3", "dynamic")

_LIMIT = 2**31 - 1
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

    `head_dim_given` and `n_head_kv_given`: config.json states them. `rope` has the shape of transformers 5's
    `rope_parameters`; `config` is the completed config.json, for what only one family asks.
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
    context: int | None = None
    tied: bool = False
    head_dim_given: bool = False
    n_head_kv_given: bool = True
    norm_eps: float | None = None
    rope: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def dimension(self, name: str) -> int:
        """Size of a dimension named by a tensor rule: a number, a field, `q` or `kv` (projection rows)."""
        if name.isdecimal():
            return int(name)
        if name == "q":
            return self.n_head * self.head_dim
        if name == "kv":
            return self.n_head_kv * self.head_dim
        return int(getattr(self, name))


def read_hyperparameters(config: Mapping[str, Any], rope_kinds: tuple[str, ...] = ROPE_KINDS) -> Hyperparameters:
    """Sizes out of a config.json, by Hugging Face's names and their common aliases.

    `rope_kinds` are the rope types that the family's GGUF can express.

    Raises:
        CheckpointError: a size is missing, not a positive whole number, or at odds with another one.
        UnsupportedError: a rope scaling that a GGUF of this family cannot express.
    """
    hidden = size(config, "hidden_size", "n_embd", "dim")
    n_head = size(config, "num_attention_heads", "n_head", "n_heads")
    kv_given = config.get("num_key_value_heads") is not None
    n_head_kv = size(config, "num_key_value_heads") if kv_given else n_head
    given = config.get("head_dim")
    if given is None and hidden % n_head:
        raise CheckpointError(
            f"config.json: hidden_size {hidden} does not divide by num_attention_heads {n_head}, head_dim is not given"
        )
    if n_head % n_head_kv:
        raise CheckpointError(
            f"config.json: num_attention_heads {n_head} does not divide by num_key_value_heads {n_head_kv}"
        )
    head_dim = size(config, "head_dim") if given is not None else hidden // n_head
    if head_dim % 2:
        raise CheckpointError(
            f"config.json: a head of {head_dim} values cannot carry rotary positions; it must be even"
        )
    return Hyperparameters(
        n_layer=size(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        hidden=hidden,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        ffn=size(config, "intermediate_size", "n_inner", "ffn_dim"),
        vocab=size(config, "vocab_size"),
        n_expert=optional_size(config, "num_local_experts", "num_experts", "n_routed_experts") or 0,
        n_expert_used=optional_size(config, "num_experts_per_tok", "num_experts_per_token") or 0,
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
        head_dim_given=given is not None,
        n_head_kv_given=kv_given,
        norm_eps=number(config, "rms_norm_eps", "norm_eps"),
        rope=_rope(config, rope_kinds),
        config=config,
    )


def _rope(config: Mapping[str, Any], kinds: tuple[str, ...]) -> dict[str, Any]:
    """Rope settings in the shape of transformers 5's `rope_parameters`, from either generation of config.json."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise CheckpointError(f"config.json: rope settings must be an object, not {given!r}")
    rope = dict(given)
    if isinstance(rope.get("full_attention"), Mapping):
        rope = dict(rope["full_attention"])
    theta = number(config, "rope_theta", "rotary_emb_base")
    if theta is not None:
        rope.setdefault("rope_theta", theta)
    partial = number(config, "partial_rotary_factor", "rope_pct", "rope_percent")
    if partial is not None:
        rope.setdefault("partial_rotary_factor", partial)
    kind = rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in kinds:
        raise UnsupportedError(f"config.json: rope scaling {kind!r} cannot be expressed in a GGUF of this family")
    needed = {"linear": ("factor",), "yarn": ("factor",), "llama3": ("factor",)}.get(kind, ())
    for name, value in rope.items():
        if name in _ROPE_NUMBERS and value is not None and not _is_positive(value):
            raise CheckpointError(f"config.json: rope {name} must be a positive number, not {value!r}")
    for name in needed:
        if rope.get(name) is None:
            raise CheckpointError(f"config.json: rope scaling {kind!r} needs a {name}")
    original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    if original is not None:
        rope["original_max_position_embeddings"] = int(original)
    return rope


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def size(config: Mapping[str, Any], *names: str) -> int:
    """A count that config.json must give under one of `names`; CheckpointError where it does not."""
    value = optional_size(config, *names)
    if value is None:
        raise CheckpointError(f"config.json has no {names[0]}; it is needed to lay out the tensors")
    return value


def optional_size(config: Mapping[str, Any], *names: str) -> int | None:
    """A count that config.json may give under one of `names`; CheckpointError where it is not a positive number."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        # Some exporters write 4096.0; a count of experts may be given as 0, for none.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value == 0 and "expert" in name:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LIMIT:
            raise CheckpointError(f"config.json: {name} must be a positive whole number, not {value!r}")
        return value
    return None


def number(config: Mapping[str, Any], *names: str) -> float | None:
    """A number that config.json may give under one of `names`; CheckpointError where it is something else."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"config.json: {name} must be a number, not {value!r}")
        return float(value)
    return None
