"""What an architecture is made of, as data: names of tensors, the parts they belong to, keys of config.json.

A name is a tensor's without `.weight` or `.bias`; a bias is used where the checkpoint has one. Names of a part are
under its `at`, those of a layer under the architecture's `layer`. What differs from layer to layer or hangs on several
keys is a function of config.json (and the layer's number).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Config = Mapping[str, Any]


def given(config: Config, *keys: str, default: Any = None) -> Any:
    """The first of `keys` that config.json states, else `default`."""
    return next((config[key] for key in keys if config.get(key) is not None), default)


def head_dim(config: Config) -> int:
    hidden, heads = given(config, "hidden_size", "n_embd"), given(config, "num_attention_heads", "n_head")
    return int(given(config, "head_dim", default=hidden // heads))


def by_head_dim(config: Config, _layer: int) -> float:
    return float(head_dim(config) ** -0.5)


def partial_rotary(config: Config) -> int:
    """Values of a head that turn: the share that config.json states, from the first on."""
    rope = config.get("rope_parameters") or {}
    share = given(config, "partial_rotary_factor", "rope_pct", default=rope.get("partial_rotary_factor", 1.0))
    return int(head_dim(config) * share)


def key_value_heads(config: Config) -> int:
    return int(given(config, "num_key_value_heads", "num_attention_heads", "n_head"))


@dataclass(frozen=True)
class Form:
    """How linears are stored: what follows the name of weight and bias; `turned` ones are (in, out)."""

    weight: str = ".weight"
    bias: str = ".bias"
    turned: bool = False


@dataclass(frozen=True)
class Norm:
    """`rms` or `layer` (mean taken off); `offset` is added to its weight, if it has any."""

    kind: Literal["rms", "layer"] = "rms"
    offset: float = 0.0
    weighted: bool = True


@dataclass(frozen=True)
class Attention:
    """Causal attention of heads, several of which may share a key and a value.

    `fused` is one linear for queries, keys and values: all of each in turn, or, `grouped`, by key head its queries, its
    key and its value. `norms` are of queries and keys, over a head, over all heads, or each head with its own. `clip`
    is the key of the limit on queries, keys and values. `pairs` says which values of a head turn together, the i-th and
    the one half the turning width on, or neighbours; `rope` gives the config that holds a layer's rope settings, or
    None where it has none. `sinks` is a score for each head that takes part in the softmax and has no value. `latent`
    is DeepSeek's: queries, keys and values out of short vectors, all heads sharing the part of the key that turns.
    """

    at: str = "self_attn."
    separate: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")
    fused: str | None = None
    grouped: bool = False
    out: str = "o_proj"
    form: Form = Form()
    kv_heads: Callable[[Config], int] = key_value_heads
    norms: tuple[str, str] | None = None
    has_norms: Callable[[Config], bool] = lambda _: True
    normed: Literal["head", "all", "each"] = "head"
    norm: Norm = Norm()
    clip: str | None = None
    pairs: Literal["half", "neighbours"] = "half"
    rotary: Callable[[Config], int] = partial_rotary
    rope: Callable[[Config, int], Config | None] = lambda config, _: config
    alibi: Callable[[Config], bool] = lambda _: False
    scale: Callable[[Config, int], float] = by_head_dim
    softcap: str | None = None
    window: Callable[[Config, int], int | None] = lambda _config, _layer: None
    sinks: str | None = None
    latent: bool = False


@dataclass(frozen=True)
class FeedForward:
    """down(activation(gate) * up), or down(activation(up)) without a gate.

    `fused` is one linear for gate and up: one after the other, or `alternating`. `inner` are keys of the width in
    between, `activation` of the function. `clamped` is gpt-oss's: gate and up limited, a gate of x sigmoid(1.702 x), up
    counted from -1.
    """

    at: str = "mlp."
    gate: str | None = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    fused: str | None = None
    alternating: bool = False
    clamped: bool = False
    form: Form = Form()
    inner: Callable[[Config], int] = lambda config: int(config["intermediate_size"])
    activation: tuple[str, ...] = ("hidden_act",)
    default_activation: str = "silu"


@dataclass(frozen=True)
class Experts:
    """Feed-forwards of which each token takes the `top` best by the router's score.

    `each` is one expert's, `{}` standing for its number; `stacked` all experts' in one tensor, taken where the
    checkpoint has it. Scores are softmax or sigmoid of the router's answer; `correction` is added to them for choosing
    only. With groups (`groups`, `top_groups`) only experts of the best groups are chosen from: a group is as good as
    the sum of its `group_by` best. Shares are the scores of those chosen, `normalised` to a sum of one, times `scale`.
    `shared` takes every token, weighted by the sigmoid of `shared_gate` if there is one. `layers` tells which layers
    have experts at all.
    """

    router: str
    each: FeedForward | None = None
    stacked: FeedForward | None = None
    count: tuple[str, ...] = ("num_local_experts", "num_experts", "n_routed_experts")
    score: Literal["softmax", "sigmoid"] = "softmax"
    correction: str | None = None
    groups: Callable[[Config], tuple[int, int]] = lambda _: (1, 1)
    group_by: int = 1
    normalised: Callable[[Config], bool] = lambda _: True
    scale: Callable[[Config], float] = lambda _: 1.0
    shared: FeedForward | None = None
    shared_gate: str | None = None
    layers: Callable[[Config, int], bool] = lambda _config, _layer: True


@dataclass(frozen=True)
class Architecture:
    """A decoder. Its layers add to the stream of hidden states what attention and feed-forward give.

    Names of the model without its head begin with `base`, which checkpoints saved from the bare model lack. `variant`
    gives fields that hang on config.json, `refused` what of it the reference does not follow.

    Each of the two sees the stream through a norm before it (or none) and may have one after it; both sums are times
    `residual_scale`. In `parallel` layers both see the stream that came in, the feed-forward through `feed_norm` or,
    where that is None, through attention's.
    """

    base: str = "model."
    embedding: str = "embed_tokens"
    embedding_norm: str | None = None
    embedding_scale: Callable[[Config], float] = lambda _: 1.0
    positions: str | None = None
    layer: str = "layers.{}."
    norm: Norm = Norm()
    attention_norm: str | None = "input_layernorm"
    after_attention: str | None = None
    feed_norm: str | None = "post_attention_layernorm"
    after_feed: str | None = None
    parallel: bool = False
    residual_scale: Callable[[Config], float] = lambda _: 1.0
    attention: Attention = field(default_factory=Attention)
    feed: FeedForward = field(default_factory=FeedForward)
    experts: Experts | None = None
    last_norm: str = "norm"
    head: str = "lm_head"
    tied: bool = False
    logit_scale: Callable[[Config], float] = lambda _: 1.0
    logit_softcap: str | None = None
    variant: Callable[[Config], Mapping[str, Any]] = lambda _: {}
    refused: Callable[[Config], str | None] = lambda _: None
