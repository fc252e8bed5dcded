"""The mixers of a layer as data: attention, its indexer, linear attention, state spaces, short convolution.

A name is a tensor's without `.weight` or `.bias`; names of a part are under its `at`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from quantkit.forward.config_keys import Config, by_head_dim, head_dim, key_value_heads, partial_rotary
from quantkit.forward.parts import Form, Norm


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
class BlockIndexer:
    """MiniMax Sparse Attention: index heads score the keys, and a query attends to the blocks of the best keys.

    Each key head has an index head. Index queries and keys are normed and rotated as those of attention are.

    Attributes:
        queries, keys: linears for index queries and for one index key.
        norms: those of an index query and of the index key.
        block: keys of a block, which is scored by its best key.
        top: number of blocks that a query attends to.
        local: number of blocks that a query always attends to: its own and those before it.
        layers: whether a layer has it.
    """

    layers: Callable[[Config, int], bool]
    heads: Callable[[Config], int]
    width: Callable[[Config], int]
    block: Callable[[Config], int]
    top: Callable[[Config], int]
    local: Callable[[Config], int]
    queries: str = "index_q_proj"
    keys: str = "index_k_proj"
    norms: tuple[str, str] = ("index_q_norm", "index_k_norm")


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
        value_width: elements of a value, where queries, keys and values have a linear each.
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
        sinks: one score a head that takes part in the softmax and has no value, in layers that have the tensor.
        latent: DeepSeek's latent attention: queries, keys and values from short vectors; all heads share the rotated
            part of the key.
        indexer: with latent attention, what chooses the keys that a query attends to.
        blocks: without latent attention, what chooses the blocks of keys that a query attends to.
        value_norm: the norm of a value over its head.
        keys_as_values: whether a layer's values are its keys before norm and rope.
        shared_from: the earlier layer whose keys and values a layer uses; None for a layer with keys and values.
        gated: the linear for queries gives each head a gate of the same width after its query; the output of
            attention is multiplied by the gate's sigmoid.
        gate: the separate linear that gives such a gate; `gate_per_head`: it gives one number a head;
            `gate_function`: what the gate passes before the product.
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
    value_width: Callable[[Config], int] = head_dim
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
    blocks: BlockIndexer | None = None
    value_norm: Norm | None = None
    keys_as_values: Callable[[Config, int], bool] = lambda _config, _layer: False
    shared_from: Callable[[Config, int], int | None] = lambda _config, _layer: None
    gated: bool = False
    gate: str | None = None
    gate_per_head: Callable[[Config], bool] = lambda _: False
    gate_function: Literal["sigmoid", "softplus"] = "sigmoid"
    multipliers: Callable[[Config], tuple[float, float, float, float]] | None = None

    def gate_width(self, config: Config, heads: int) -> int:
        """Rows of the separate linear for the gate."""
        return heads if self.gate_per_head(config) else heads * self.value_width(config)


@dataclass(frozen=True)
class Compressor:
    """DeepSeek-V4's compressor: one key (and value) for each window of tokens, a softmax-weighted mean per channel.

    Attributes:
        values, weights: linears for a token's contribution and for the logarithm of its weight.
        positions: the tensor that is added to the latter, (tokens of a window, channels).
        norm: the norm of the means, before their rotation.
    """

    at: str = "compressor."
    values: str = "wkv"
    weights: str = "wgate"
    positions: str = "ape"
    norm: str = "norm"


@dataclass(frozen=True)
class CompressedAttention:
    """DeepSeek-V4's attention: the tokens of a window, and compressed ones before it, with one key for all heads.

    The key is the value too. So the rotation of the last values of a head is undone in the output, which leaves
    through a linear for each group of heads, and one for all. All norms are RMS norms.

    Attributes:
        queries: the linears for compressed queries and for queries; the norm between them is `query_norm`. A head's
            query has a norm without a weight after them.
        keys: the linear for the key; `key_norm` is its norm.
        groups, out: the linear for each group of heads, stacked in one tensor, and the last one.
        sinks: one score a head that takes part in the softmax and has no value.
        compressor: what compresses the tokens, in layers with a `ratio`.
        indexer: the prefix of the index heads, which choose compressed tokens in layers of windows that `overlap`:
            `index_queries` (from the compressed queries) and `index_weights` are their linears.
        ratio: tokens that a layer compresses into one, 0 for none.
        overlap: whether the windows of a layer overlap, so that a compressed token covers two of them.
        rope: the config with a layer's rope settings.
    """

    at: str = "attn."
    queries: tuple[str, str] = ("wq_a", "wq_b")
    query_norm: str = "q_norm"
    keys: str = "wkv"
    key_norm: str = "kv_norm"
    groups: str = "wo_a"
    out: str = "wo_b"
    sinks: str = "attn_sink"
    compressor: Compressor = Compressor()
    indexer: str = "indexer."
    index_queries: str = "wq_b"
    index_weights: str = "weights_proj"
    ratio: Callable[[Config, int], int] = lambda config, layer: int(config["compress_ratios"][layer])
    overlap: Callable[[Config, int], bool] = lambda config, layer: int(config["compress_ratios"][layer]) == 4
    rope: Callable[[Config, int], Config] = lambda config, _layer: config
    rotary: Callable[[Config], int] = lambda config: int(config["qk_rope_head_dim"])
    rank: Callable[[Config], int] = lambda config: int(config["q_lora_rank"])
    group_count: Callable[[Config], int] = lambda config: int(config["o_groups"])
    group_rank: Callable[[Config], int] = lambda config: int(config["o_lora_rank"])
    window: Callable[[Config], int] = lambda config: int(config["sliding_window"])
    index_heads: Callable[[Config], int] = lambda config: int(config["index_n_heads"])
    index_width: Callable[[Config], int] = lambda config: int(config["index_head_dim"])
    top: Callable[[Config], int] = lambda config: int(config["index_topk"])

    def channels(self, config: Config, layer: int, width: int) -> int:
        """Channels of a compressor of keys of that width."""
        return 2 * width if self.overlap(config, layer) else width


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
        centered: the convolution reaches as far to later tokens as to earlier ones.
        layers: whether a layer has it in place of attention.
        projection: the linear for two gates and the values: before the convolution, after it, values.
        convolution: the depthwise convolution, (hidden, 1, kernel width).
    """

    layers: Callable[[Config, int], bool]
    at: str = "conv."
    projection: str = "in_proj"
    convolution: str = "conv"
    out: str = "out_proj"
    centered: bool = False


@dataclass(frozen=True)
class OneLinear:
    """One linear over the hidden states in place of attention (Puzzle, arXiv 2411.19146).

    Attributes:
        layers: whether a layer has it in place of attention.
    """

    layers: Callable[[Config, int], bool]
    at: str = "self_attn."
    linear: str = "linear_attn"


@dataclass(frozen=True)
class Goose:
    """What RWKV 7 has more than RWKV 6: the widths of its low-rank parts w, a, v and g.

    Their matrices are linears (`w_lora.lora.0`, `w_lora.lora.2`), or parameters (`w1`, `w2`) with a vector `w0`.
    """

    rank: Callable[[Config, str], int]


@dataclass(frozen=True)
class TimeMix:
    """RWKV's time mixing in place of attention (see `time_mix`): RWKV 7's with `goose`, else RWKV 6's.

    Attributes:
        width: elements of a head.
        separate: names of the linears for receptances, keys, values and, in RWKV 6, the gate.
        norm: the norm of each head's output, with a weight for all heads.
        rank, decay_rank: widths of RWKV 6's low-rank parts.
    """

    width: Callable[[Config], int]
    at: str = "attention."
    separate: tuple[str, ...] = ("receptance", "key", "value", "gate")
    out: str = "output"
    norm: str = "ln_x"
    rank: Callable[[Config], int] = lambda _: 0
    decay_rank: Callable[[Config], int] = lambda _: 0
    goose: Goose | None = None


@dataclass(frozen=True)
class ChannelMix:
    """RWKV's channel mixing in place of the feed-forward: value(relu(key(x))^2), of a mixture with the token before.

    Attributes:
        key_mix: the vector that says how much of the token before the key takes.
        receptance: in RWKV 6, the linear whose sigmoid multiplies the output, and its mixture's vector.
    """

    at: str = "feed_forward."
    key: str = "key"
    value: str = "value"
    key_mix: str = "x_k"
    receptance: tuple[str, str] | None = None
    inner: Callable[[Config], int] = lambda config: int(config["intermediate_size"])
