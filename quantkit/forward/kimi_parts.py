"""Parts of Kimi's models as data: Kimi Delta Attention, attention over earlier states, experts within a latent."""

from collections.abc import Callable
from dataclasses import dataclass

from quantkit.forward.config_keys import Config


@dataclass(frozen=True)
class KimiDelta:
    """Kimi Delta Attention (arXiv 2510.26692): Gated DeltaNet whose decay has a rate for each channel of the keys.

    Queries, keys and values have a linear and a short causal convolution each. Two linears in a row, or one, give the
    decay, and so the output gate.

    Attributes:
        layers: whether a layer has it in place of attention.
        separate: names of the linears for queries, keys and values.
        convolutions: their depthwise convolutions, (channels, 1, kernel width).
        forget: two linears: the hidden states to one head's width, and that to the decay of every channel; or one.
        gate: such linears for the output gate.
        beta: the linear that says how much of a token is written, one number a head.
        decay, time_bias: the logarithm of the decay rate, one a head, and what is added to the decay's linears.
        norm: the norm of each head, which is then multiplied by the sigmoid of the output gate.
        eps: what the norm of queries and keys adds to their sum of squares.
        bound: the lower bound of the decay's logarithm, or None (see `kimi_delta`).
    """

    layers: Callable[[Config, int], bool]
    at: str = "self_attn."
    separate: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")
    convolutions: tuple[str, str, str] = ("q_conv1d", "k_conv1d", "v_conv1d")
    forget: tuple[str, ...] = ("f_a_proj", "f_b_proj")
    gate: tuple[str, ...] = ("g_a_proj", "g_b_proj")
    beta: str = "b_proj"
    decay: str = "A_log"
    time_bias: str = "dt_bias"
    norm: str = "o_norm"
    out: str = "o_proj"
    eps: float = 1e-6
    heads: Callable[[Config], int] = lambda config: int(config["linear_attn_config"]["num_heads"])
    width: Callable[[Config], int] = lambda config: int(config["linear_attn_config"]["head_dim"])
    bound: Callable[[Config], float | None] = lambda _: None


@dataclass(frozen=True)
class ResidualAttention:
    """Attention of each part of a layer over the hidden states of earlier layers (Kimi K3, see `residual_attention`).

    Attributes:
        block: layers from one stored state to the next.
        before_attention, before_feed, before_head: names of a norm and a linear with one row; the product of their
            weights scores the states.
    """

    block: Callable[[Config], int] = lambda config: int(config["attn_res_block_size"])
    before_attention: tuple[str, str] = ("self_attention_res_norm", "self_attention_res_proj")
    before_feed: tuple[str, str] = ("mlp_res_norm", "mlp_res_proj")
    before_head: tuple[str, str] = ("output_attn_res_norm", "output_attn_res_proj")

    def states(self, config: Config, layer: int) -> int:
        """The number of states that layers before `layer` have stored."""
        return -(-layer // self.block(config))


@dataclass(frozen=True)
class Latent:
    """What routed experts read in place of the hidden states: up(norm(experts(down(x)))).

    Attributes:
        width: elements of the latent, or 0 if experts read the hidden states.
        has_norm: whether the sum over the experts has a norm.
    """

    width: Callable[[Config], int]
    has_norm: Callable[[Config], bool]
    down: str
    up: str
    norm: str
