"""An architecture as data: names of tensors, the parts they belong to, keys of config.json.

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
    """Width of a head: `head_dim`, or the hidden size over the number of heads."""
    hidden, heads = (
        given(config, "hidden_size", "n_embd", "d_model"),
        given(config, "num_attention_heads", "n_head", "n_heads"),
    )
    return int(given(config, "head_dim", default=hidden // heads))


def by_head_dim(config: Config, _layer: int) -> float:
    """The usual factor on the scores: 1 / sqrt(head_dim)."""
    return float(head_dim(config) ** -0.5)


def partial_rotary(config: Config) -> int:
    """Number of rotated values of a head: the fraction that config.json gives; they come first."""
    rope = config.get("rope_parameters") or {}
    share = given(config, "partial_rotary_factor", "rope_pct", default=rope.get("partial_rotary_factor", 1.0))
    return int(head_dim(config) * share)


def key_value_heads(config: Config) -> int:
    """Number of key-value heads; by default that of the heads."""
    return int(given(config, "num_key_value_heads", "num_attention_heads", "n_head", "n_heads"))


@dataclass(frozen=True)
class Form:
    """How linears are stored: the endings of weight and bias; `turned`: the weight is (in, out)."""

    weight: str = ".weight"
    bias: str = ".bias"
    turned: bool = False


@dataclass(frozen=True)
class Norm:
    """An RMSNorm or a LayerNorm; `offset` is added to the weight; `weighted` False: it has none."""

    kind: Literal["rms", "layer"] = "rms"
    offset: float = 0.0
    weighted: bool = True


@dataclass(frozen=True)
class Indexer:
    """DeepSeek Sparse Attention: index heads score the keys, and a query attends to the keys with the best scores.

    Attributes:
        queries, keys, weights: linears for index queries (from the compressed queries), one index key, and a weight of
            each index head.
        norm: the LayerNorm of the index key.
        pairs: which values rotate together, see `Attention`; as many as in attention, the first of a head.
        top: number of keys that a query attends to.
        own: whether a layer has an indexer; another layer uses the choice of the last layer before it that has.
    """

    at: str = "indexer."
    queries: str = "wq_b"
    keys: str = "wk"
    weights: str = "weights_proj"
    norm: str = "k_norm"
    pairs: Literal["half", "neighbours"] = "half"
    heads: Callable[[Config], int] = lambda config: int(config["index_n_heads"])
    width: Callable[[Config], int] = lambda config: int(config["index_head_dim"])
    top: Callable[[Config], int] = lambda config: int(config["index_topk"])
    own: Callable[[Config, int], bool] = lambda _config, _layer: True


@dataclass(frozen=True)
class Attention:
    """Attention with heads, of which several may share a key and a value.

    Attributes:
        causal: whether a token attends to itself and earlier tokens only; False for encoders. A window then reaches to
            both sides, half of it each.
        at: prefix of the part's names.
        separate: names of the linears for queries, keys and values.
        fused: one linear for all three instead: all queries, all keys, all values; with `grouped`, for each key head
            its queries, its key and its value.
        kv_heads: number of key-value heads.
        norms: norms of queries and keys; `has_norms`: whether config.json uses them.
        normed: a norm over a head, over all heads at once, or over a head with separate weights: a tensor per head
            (`each`) or one of shape (heads, head_dim) (`by_head`).
        norms_after_rope: whether the norms come after the rotation.
        normed_layers: the layers whose queries and keys have norms.
        clip: the config key of the limit on queries, keys and values.
        pairs: which values of a head rotate together: i and i + half the rotary width, or neighbours.
        rotary: number of rotated values of a head.
        rope: the config with a layer's rope settings, or None for a layer without rope.
        alibi: whether ALiBi slopes are added to the scores.
        scale: factor on the scores.
        softcap: the config key of the scores' soft cap.
        window: tokens of a layer's sliding window, or None.
        chunk: tokens of a layer's chunks, or None; a token attends within its chunk only.
        late_queries: a layer's (beta, length, first), or None: queries are multiplied by
            1 + beta ln(1 + floor(position / length)); the first token has the position `first`.
        sinks: one score a head that takes part in the softmax and has no value.
        latent: DeepSeek's latent attention: queries, keys and values from short vectors; all heads share the rotated
            part of the key.
        indexer: with latent attention, what chooses the keys that a query attends to.
        value_norm: the norm of a value over its head.
        keys_as_values: whether a layer's values are its keys before norm and rope.
        shared_from: the earlier layer whose keys and values a layer uses; None for a layer with keys and values.
        gated: the linear for queries gives each head a gate of the same width after its query; the output of
            attention is multiplied by the gate's sigmoid.
        gate: the separate linear that gives such a gate.
        multipliers: factors of queries, keys, values and the output, after their linears (muP).
    """

    causal: bool = True
    at: str = "self_attn."
    separate: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")
    fused: str | None = None
    grouped: bool = False
    out: str = "o_proj"
    form: Form = Form()
    kv_heads: Callable[[Config], int] = key_value_heads
    norms: tuple[str, str] | None = None
    has_norms: Callable[[Config], bool] = lambda _: True
    normed: Literal["head", "all", "each", "by_head"] = "head"
    norm: Norm = Norm()
    norms_after_rope: bool = False
    normed_layers: Callable[[Config, int], bool] = lambda _config, _layer: True
    clip: str | None = None
    pairs: Literal["half", "neighbours"] = "half"
    rotary: Callable[[Config], int] = partial_rotary
    rope: Callable[[Config, int], Config | None] = lambda config, _: config
    alibi: Callable[[Config], bool] = lambda _: False
    scale: Callable[[Config, int], float] = by_head_dim
    softcap: str | None = None
    window: Callable[[Config, int], int | None] = lambda _config, _layer: None
    late_queries: Callable[[Config, int], tuple[float, int, int] | None] = lambda _config, _layer: None
    chunk: Callable[[Config, int], int | None] = lambda _config, _layer: None
    sinks: str | None = None
    latent: bool = False
    indexer: Indexer | None = None
    value_norm: Norm | None = None
    keys_as_values: Callable[[Config, int], bool] = lambda _config, _layer: False
    shared_from: Callable[[Config, int], int | None] = lambda _config, _layer: None
    gated: bool = False
    gate: str | None = None
    multipliers: Callable[[Config], tuple[float, float, float, float]] | None = None


@dataclass(frozen=True)
class DeltaNet:
    """Gated DeltaNet (arXiv 2412.06464): linear attention with a state that a gated delta rule updates per token.

    Queries, keys and values pass a short causal convolution. Several value heads may share a key head.

    Attributes:
        layers: whether a layer has it in place of attention.
        separate: names of four linears: queries, keys and values together; the output gate; beta (how much of a
            token is written); the decay.
        fused: two linears instead: queries, keys, values and gate; beta and decay. Each is ordered by key head.
        convolution: the depthwise convolution over queries, keys and values, (channels, 1, kernel width).
        decay, time_bias: the logarithm of the decay rate, and what is added to the decay's linear; one a value head.
        norm: the norm of each value head, which is then multiplied by SiLU of the output gate.
        eps: what the norm of queries and keys adds to their sum of squares.
    """

    layers: Callable[[Config, int], bool]
    at: str = "linear_attn."
    separate: tuple[str, str, str, str] = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
    fused: tuple[str, str] | None = None
    convolution: str = "conv1d"
    decay: str = "A_log"
    time_bias: str = "dt_bias"
    norm: str = "norm"
    out: str = "out_proj"
    eps: float = 1e-6
    key_heads: Callable[[Config], int] = lambda config: int(config["linear_num_key_heads"])
    value_heads: Callable[[Config], int] = lambda config: int(config["linear_num_value_heads"])
    key_width: Callable[[Config], int] = lambda config: int(config["linear_key_head_dim"])
    value_width: Callable[[Config], int] = lambda config: int(config["linear_value_head_dim"])


@dataclass(frozen=True)
class Mamba:
    """Mamba (arXiv 2312.00752): a state for each channel, whose elements decay at rates of their own.

    One linear gives the values and the gate. Values pass a short causal convolution. A second linear gives the time
    steps in short, the keys (B) and the queries (C). A third linear gives each channel its time step.

    Attributes:
        layers: whether a layer has it in place of attention.
        convolution: the depthwise convolution over the values, (channels, 1, kernel width).
        selection: the linear for short time steps, keys and queries, which all channels share.
        steps: the linear from short time steps to those of the channels.
        decay, skip: the logarithm of the decay rates, (channels, state), and the value's factor in the output, one per
            channel.
        norms: norms of short time steps, keys and queries; `norm` says of which kind, `norm_eps` with which epsilon
            (None: the model's).
        inner, state, rank: channels, elements of a channel's state, and elements of short time steps.
    """

    layers: Callable[[Config, int], bool]
    inner: Callable[[Config], int]
    state: Callable[[Config], int]
    rank: Callable[[Config], int]
    at: str = "mixer."
    projection: str = "in_proj"
    convolution: str = "conv1d"
    selection: str = "x_proj"
    steps: str = "dt_proj"
    decay: str = "A_log"
    skip: str = "D"
    norms: tuple[str, str, str] | None = None
    norm: Norm = Norm()
    norm_eps: Callable[[Config], float | None] = lambda _: None
    out: str = "out_proj"


@dataclass(frozen=True)
class Mamba2:
    """Mamba 2 (arXiv 2405.21060): a state for each head that decays by one factor a token.

    One linear gives the gate, the values, the keys (B), the queries (C) and the time steps, in this order. Values, keys
    and queries pass a short causal convolution. Consecutive heads share the keys and queries of a group.

    Attributes:
        layers: whether a layer has it in place of attention.
        convolution: the depthwise convolution over values, keys and queries, (channels, 1, kernel width).
        decay, time_bias, skip: one per head: the logarithm of the decay rate, the time step's bias, the value's factor
            in the output.
        norm: the norm of the gated output in as many parts as there are groups; its weight covers all parts.
        has_norm: whether config.json uses that norm.
        beside: whether it runs beside attention: both read the same norm, and their outputs are added.
        multipliers: factors of gate, values, keys, queries, time steps and the output, after their linears (muP).
    """

    layers: Callable[[Config, int], bool]
    at: str = "mamba."
    projection: str = "in_proj"
    convolution: str = "conv1d"
    decay: str = "A_log"
    time_bias: str = "dt_bias"
    skip: str = "D"
    norm: str = "norm"
    has_norm: Callable[[Config], bool] = lambda _: True
    beside: bool = False
    multipliers: Callable[[Config], tuple[float, float, float, float, float, float]] | None = None
    out: str = "out_proj"
    heads: Callable[[Config], int] = lambda config: int(config["mamba_n_heads"])
    head_width: Callable[[Config], int] = lambda config: int(config["mamba_d_head"])
    groups: Callable[[Config], int] = lambda config: int(config["mamba_n_groups"])
    state: Callable[[Config], int] = lambda config: int(config["mamba_d_state"])


@dataclass(frozen=True)
class ShortConvolution:
    """A gated causal convolution over a few tokens in place of attention (LFM2).

    Attributes:
        layers: whether a layer has it in place of attention.
        projection: the linear for two gates and the values: before the convolution, after it, values.
        convolution: the depthwise convolution, (hidden, 1, kernel width).
    """

    layers: Callable[[Config, int], bool]
    at: str = "conv."
    projection: str = "in_proj"
    convolution: str = "conv"
    out: str = "out_proj"


@dataclass(frozen=True)
class FeedForward:
    """down(activation(gate) * up), or down(activation(up)) if `gate` is None.

    Attributes:
        fused: one linear for gate and up: one after the other, or `alternating`.
        clamped: gpt-oss's variant: gate and up are limited, the gate is x sigmoid(1.702 x), and 1 is added to up.
        inner: width between up and down.
        sparsity: by layer, the share of gates that are set to zero, if gates were normal; 0 keeps all. The others are
            what they exceed that quantile by.
        activation: config keys of the activation's name; `default_activation` if config.json lacks them.
        multipliers: factors of the gate before its activation, and of the output (muP).
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
    sparsity: Callable[[Config, int], float] = lambda _config, _layer: 0.0
    activation: tuple[str, ...] = ("hidden_act",)
    default_activation: str = "silu"
    xielu: str | None = None
    multipliers: Callable[[Config], tuple[float, float]] | None = None


@dataclass(frozen=True)
class Beside:
    """Norms of a layer whose experts run beside its feed-forward: the outputs of both are normed and added.

    Attributes:
        norm: norm of the experts' input.
        after_experts, after_dense: norms of the two outputs.
        router_scale: vector; the router reads the hidden states over their root mean square, times this vector, times
            1 / sqrt(hidden).
    """

    norm: str
    after_experts: str
    after_dense: str
    router_scale: str


@dataclass(frozen=True)
class Experts:
    """Feed-forwards of which each token uses the best by the router's score.

    Attributes:
        router: the linear that scores the experts.
        expert: one expert; `{}` in its names stands for its number.
        stacked: all experts in one tensor; used where the checkpoint has it.
        count: config keys of the number of experts.
        used: config keys of the number of experts per token, or of a list with one number per layer.
        score: the function from the router's output to scores.
        correction: a vector added to the scores for the choice only.
        groups: (number of groups, groups chosen); experts come from the best groups only.
        group_by: a group's score is the sum of its best scores, this many.
        normalised: whether the weights of the chosen experts are scaled to a sum of one.
        scale: factor on the weights.
        expert_scale: a vector; the weight of each expert is multiplied by its element.
        weighted_input: whether the weights scale an expert's input instead of its output.
        shared: an expert for every token, times the sigmoid of `shared_gate` if there is one.
        beside: the norms, if experts run beside the layer's feed-forward and do not replace it.
        layers: whether a layer has experts.
    """

    router: str
    expert: FeedForward | None = None
    stacked: FeedForward | None = None
    count: tuple[str, ...] = ("num_local_experts", "num_experts", "n_routed_experts")
    used: tuple[str, ...] = ("num_experts_per_tok", "num_experts_per_token")
    score: Literal["softmax", "sigmoid"] = "softmax"
    correction: str | None = None
    groups: Callable[[Config], tuple[int, int]] = lambda _: (1, 1)
    group_by: int = 1
    normalised: Callable[[Config], bool] = lambda _: True
    scale: Callable[[Config], float] = lambda _: 1.0
    expert_scale: str | None = None
    weighted_input: bool = False
    shared: FeedForward | None = None
    shared_gate: str | None = None
    beside: Beside | None = None
    layers: Callable[[Config, int], bool] = lambda _config, _layer: True


@dataclass(frozen=True)
class LayerInputs:
    """Per-layer embeddings: each layer has a vector for each token, which gates a part after the others.

    The vector is (embedding row * sqrt(width) + norm(projection of the model's embedding / sqrt(hidden))) / sqrt(2).
    The part adds norm(out(activation(gate(x)) * vector)) to the hidden states x.

    Attributes:
        width: elements of the vector; 0 if the model has none.
        rows: tokens in the table of vectors; later tokens have the first row. 0: all have their own.
        embedding, projection, norm: names outside the layers; the tensors hold all layers one after the other.
        gate, out, after: names within a layer.
        activation: config keys of the activation's name.
    """

    width: Callable[[Config], int]
    rows: Callable[[Config], int] = lambda config: int(config.get("vocab_size_per_layer_input") or 0)
    embedding: str = "embed_tokens_per_layer"
    projection: str = "per_layer_model_projection"
    norm: str = "per_layer_projection_norm"
    gate: str = "per_layer_input_gate"
    out: str = "per_layer_projection"
    after: str = "post_per_layer_input_norm"
    activation: tuple[str, ...] = ("hidden_activation",)
    default_activation: str = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class AltUp:
    """Several streams of hidden states, of which a layer computes one (see `altup`).

    Attributes:
        projection, unembedding: linears outside the layers that make a stream from the embedding and merge it; a number
            follows the name.
        prediction, correction, router, router_norm, output_scale: names within a layer, below `at`.
    """

    at: str = "altup."
    projection: str = "altup_projections"
    unembedding: str = "altup_unembed_projections"
    prediction: str = "prediction_coefs"
    correction: str = "correction_coefs"
    router: str = "modality_router"
    router_norm: str = "router_norm"
    output_scale: str = "correct_output_scale"
    count: Callable[[Config], int] = lambda config: int(config["altup_num_inputs"])
    active: Callable[[Config], int] = lambda config: int(config["altup_active_idx"])


@dataclass(frozen=True)
class Laurel:
    """LAuReL (arXiv 2411.07501), a low-rank residual: the layer gives (state + x + norm(right(left(x)))) / sqrt(2).

    x is the normed input of attention. All names are below `at`.
    """

    at: str = "laurel."
    left: str = "linear_left"
    right: str = "linear_right"
    norm: str = "post_laurel_norm"
    rank: Callable[[Config], int] = lambda config: int(config["laurel_rank"])


@dataclass(frozen=True)
class Architecture:
    """A decoder, or an encoder. The defaults are Llama's.

    Attention and feed-forward each read the hidden states through a norm (`attention_norm`, `feed_norm`; None: no norm)
    and may have a norm after them (`after_attention`, `after_feed`). Their output times `residual_scale` is added to
    the hidden states.

    Attributes:
        head: the output head; "" for an encoder, whose results are its hidden states.
        base: prefix of all names but the head's; checkpoints saved from the bare model lack it.
        layer: prefix of a layer's names.
        positions: the tensor of learned positions; `first_position` is its row for the first token.
        token_types: the tensor of token types; its first row is added to every embedding.
        sum_norms: norms of the hidden states after attention and after the feed-forward have been added (BERT).
        delta_net, mamba, mamba2, short_convolution: what some layers have in place of attention (Mamba 2 also beside
            it).
        mixes: whether a layer has attention or what stands in its place.
        feeds: whether a layer has a feed-forward or experts.
        parallel: both parts read the same hidden states, the feed-forward through `feed_norm` or, if that is None,
            through attention's norm.
        layer_inputs: per-layer embeddings.
        altup: several streams of hidden states.
        laurel: a low-rank residual beside attention.
        layer_scale: the tensor of one number that multiplies a layer's output.
        last_norm: the norm after the last layer, or "".
        tied: whether the embedding is the head where config.json does not say.
        per_layer: the config of a layer, where layers differ in sizes.
        variant: fields that depend on config.json.
        refused: the setting of config.json that the forward does not support, or None.
        unpacked: why loaders of AWQ and GPTQ folders do not run the model, or None.
    """

    base: str = "model."
    embedding: str = "embed_tokens"
    embedding_norm: str | None = None
    embedding_scale: Callable[[Config], float] = lambda _: 1.0
    positions: str | None = None
    first_position: Callable[[Config], int] = lambda _: 0
    token_types: str | None = None
    sum_norms: tuple[str, str] | None = None
    layer: str = "layers.{}."
    norm: Norm = Norm()
    attention_norm: str | None = "input_layernorm"
    after_attention: str | None = None
    feed_norm: str | None = "post_attention_layernorm"
    after_feed: str | None = None
    mixes: Callable[[Config, int], bool] = lambda _config, _layer: True
    feeds: Callable[[Config, int], bool] = lambda _config, _layer: True
    parallel: bool = False
    residual_scale: Callable[[Config], float] = lambda _: 1.0
    attention: Attention = field(default_factory=Attention)
    delta_net: DeltaNet | None = None
    mamba: Mamba | None = None
    mamba2: Mamba2 | None = None
    short_convolution: ShortConvolution | None = None
    feed: FeedForward = field(default_factory=FeedForward)
    experts: Experts | None = None
    layer_inputs: LayerInputs | None = None
    altup: AltUp | None = None
    laurel: Laurel | None = None
    layer_scale: str | None = None
    last_norm: str = "norm"
    head: str = "lm_head"
    tied: bool = False
    logit_scale: Callable[[Config], float] = lambda _: 1.0
    logit_softcap: str | None = None
    per_layer: Callable[[Config, int], Config] = lambda config, _: config
    variant: Callable[[Config], Mapping[str, Any]] = lambda _: {}
    refused: Callable[[Config], str | None] = lambda _: None
    unpacked: Callable[[Config], str | None] = lambda _: None
