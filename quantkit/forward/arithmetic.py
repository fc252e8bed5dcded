"""The functions that every architecture is put together from, on float32 arrays."""

import math
from collections.abc import Callable

import numpy as np

from quantkit.errors import UnsupportedError
from quantkit.forward.description import Norm
from quantkit.forward.weights import Array, f32

_ERF = np.vectorize(math.erf, otypes=[np.float32])


def normalise(x: Array, weight: Array, bias: Array | None, norm: Norm, eps: float) -> Array:
    """RMSNorm (arXiv 1910.07467) or LayerNorm (1607.06450) over the last axis."""
    if norm.kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps))
    out = x * (weight + np.float32(norm.offset))
    return f32(out if bias is None else out + bias)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return f32(e / e.sum(axis=-1, keepdims=True))


def sigmoid(x: Array) -> Array:
    return f32(0.5 * (1 + np.tanh(0.5 * x)))


def softcapped(x: Array, cap: float | None) -> Array:
    return x if cap is None else f32(np.tanh(x / np.float32(cap)) * np.float32(cap))


def _gelu(x: Array) -> Array:
    return f32(0.5 * x * (1 + _ERF(x * np.float32(0.5**0.5))))


def _gelu_tanh(x: Array) -> Array:
    return f32(0.5 * x * (1 + np.tanh(np.float32((2 / math.pi) ** 0.5) * (x + np.float32(0.044715) * x**3))))


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
}


def activation(name: str) -> Callable[[Array], Array]:
    """The function that transformers has under `name`; UnsupportedError for one that no architecture here uses."""
    if name not in _ACTIVATIONS:
        raise UnsupportedError(f"the reference forward knows {', '.join(_ACTIVATIONS)}; config.json asks for {name!r}")
    return _ACTIVATIONS[name]


def turn(x: Array, cos: Array, sin: Array, pairs: str) -> Array:
    """Rotate the first values of each head, (heads, n, head_dim), by cos and sin (n, pairs); the others stay."""
    width = 2 * cos.shape[1]
    turning = x[..., :width]
    if pairs == "half":
        first, second = np.split(turning, 2, axis=-1)
        turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    else:
        first, second = turning[..., 0::2], turning[..., 1::2]
        turned = np.stack([first * cos - second * sin, second * cos + first * sin], axis=-1).reshape(turning.shape)
    return np.concatenate([turned, x[..., width:]], axis=-1)


def alibi_slopes(heads: int) -> Array:
    """A slope for each head (arXiv 2108.12409): a geometric series; heads over a power of two take every other of the
    next finer one."""
    power = 1 << int(math.log2(heads))

    def series(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    return np.array(series(power) + series(2 * power)[0::2][: heads - power], np.float32)
