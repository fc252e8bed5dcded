"""The functions that all architectures share, on float32 arrays."""

import math
from collections.abc import Callable

import numpy as np

from quantkit.errors import UnsupportedError
from quantkit.forward.arrays import Array, empty, erf, namespace
from quantkit.forward.parts import Norm


def normalise(x: Array, weight: Array | None, bias: Array | None, norm: Norm, eps: float) -> Array:
    """RMSNorm (arXiv 1910.07467) or LayerNorm (1607.06450) over the last axis."""
    xp = namespace(x)
    if norm.kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    squares = xp.einsum("...i,...i->...", x, x)
    out: Array = x * (1.0 / xp.sqrt(squares / x.shape[-1] + eps))[..., None]
    if weight is not None:
        out *= weight + norm.offset
    if bias is not None:
        out += bias
    return out


def softmax(x: Array) -> Array:
    """Softmax along the last axis."""
    xp = namespace(x)
    e: Array = xp.exp(x - xp.amax(x, axis=-1, keepdims=True))
    e /= e.sum(axis=-1, keepdims=True)
    return e


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), computed by tanh, which does not overflow."""
    out: Array = namespace(x).tanh(0.5 * x)
    out += 1.0
    out *= 0.5
    return out


def softcapped(x: Array, cap: float | None) -> Array:
    """cap * tanh(x / cap); x without a cap."""
    if cap is None:
        return x
    out: Array = namespace(x).tanh(x / cap)
    out *= cap
    return out


def _silu(x: Array) -> Array:
    half = 0.5 * x
    out: Array = namespace(x).tanh(half)
    out += 1.0
    out *= half
    return out


def _relu(x: Array) -> Array:
    out: Array = namespace(x).clip(x, 0.0, None)
    return out


def _relu_squared(x: Array) -> Array:
    out = _relu(x)
    out *= out
    return out


def _gelu(x: Array) -> Array:
    out = erf(x * 0.5**0.5)
    out += 1.0
    out *= x
    out *= 0.5
    return out


def _gelu_tanh(x: Array) -> Array:
    inner = x * x
    inner *= 0.044715 * (2 / math.pi) ** 0.5
    inner += (2 / math.pi) ** 0.5
    inner *= x
    out: Array = namespace(x).tanh(inner, out=inner)
    out += 1.0
    out *= x
    out *= 0.5
    return out


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": _silu,
    "swish": _silu,
    "relu": _relu,
    "relu2": _relu_squared,
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
}


def activation(name: str) -> Callable[[Array], Array]:
    """The function that transformers has under `name`; UnsupportedError for one that no architecture here uses."""
    if name not in _ACTIVATIONS:
        raise UnsupportedError(
            f"the reference forward does not support activation {name!r} of config.json; use one of"
            f" {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def turn(x: Array, cos: Array, sin: Array, pairs: str) -> Array:
    """Rotate the first values of each head, (heads, n, head_dim), by cos and sin (n, pairs); keep the others."""
    half, width = cos.shape[1], 2 * cos.shape[1]
    one, other = (slice(half), slice(half, width)) if pairs == "half" else (slice(0, width, 2), slice(1, width, 2))
    first, second = x[..., one], x[..., other]
    out = empty(x.shape, x)
    out[..., one] = first * cos - second * sin
    out[..., other] = second * cos + first * sin
    out[..., width:] = x[..., width:]
    return out


def xielu(alpha_p: float, alpha_n: float, beta: float, eps: float) -> Callable[[Array], Array]:
    """xIELU (arXiv 2411.13010): a parabola above zero, an integrated ELU below; both alphas are before softplus."""
    above, below = math.log1p(math.exp(alpha_p)), beta + math.log1p(math.exp(alpha_n))

    def apply(x: Array) -> Array:
        xp = namespace(x)
        negative = (xp.expm1(xp.clip(x, None, eps)) - x) * below
        out: Array = xp.where(x > 0, x * x * above, negative) + x * beta
        return out

    return apply


def alibi_slopes(heads: int) -> Array:
    """A slope for each head (arXiv 2108.12409): a geometric series; heads over a power of two take every other of the
    next finer one."""
    power = 1 << int(math.log2(heads))

    def series(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    return np.array(series(power) + series(2 * power)[0::2][: heads - power], np.float32)
