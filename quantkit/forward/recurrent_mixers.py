"""Mixers with a state or a convolution as data: linear attention, state spaces, short convolution, RWKV's parts.

A name is a tensor's without `.weight` or `.bias`; names of a part are under its `at`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from quantkit.forward.config_keys import Config
from quantkit.forward.parts import Norm


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
