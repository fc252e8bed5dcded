"""Parts of Kimi's models as data: Kimi Delta Attention in place of attention."""

from collections.abc import Callable
from dataclasses import dataclass

from quantkit.forward.config_keys import Config


@dataclass(frozen=True)
class KimiDelta:
    """Kimi Delta Attention (arXiv 2510.26692): Gated DeltaNet whose decay has a rate for each channel of the keys.

    Queries, keys and values have a linear and a short causal convolution each. Two linears in a row give the decay, and
    two the output gate.

    Attributes:
        layers: whether a layer has it in place of attention.
        separate: names of the linears for queries, keys and values.
        convolutions: their depthwise convolutions, (channels, 1, kernel width).
        forget: two linears: the hidden states to one head's width, and that to the decay of every channel.
        gate: two such linears for the output gate, or one.
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
    forget: tuple[str, str] = ("f_a_proj", "f_b_proj")
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
