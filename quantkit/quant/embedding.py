"""What an error of an embedding's row costs: a matrix that takes the place of the Gram matrix in error feedback.

The first layer reads the embedding x through a norm of weight g. To first order, and up to a factor for each token, an
error e of x changes the output of a linear W behind the norm by W (g * e). The squares of these changes sum to e M e',
M = diag(g) W'W diag(g): what H is for an error of the weights, M is for one of the input. The feed-forward reads x and
attention's output through a norm of weight f, where e itself counts as diag(f)^2. Which linear matters, and how much e
itself does, differs between models, so several sums are compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.forward.linears import LayerLinears, Linear, NormFold
from quantkit.quant.fold import matrix
from quantkit.quant.grid import Array

STATE_PARTS = (0.3, 0.03, 3.0)
"""Weights of the error itself, beside that of attention's linears. The first is for the choice among these."""


@dataclass(frozen=True)
class Costs:
    """M of each linear behind the first norm, and of the error itself: float32 (hidden, hidden), each of trace 1."""

    linears: tuple[Array, ...]
    state: Array

    def bases(self) -> list[Array]:
        """The mean of the linears, and each one alone."""
        return [_mean(self.linears), *self.linears] if len(self.linears) > 1 else list(self.linears)

    def with_state(self, base: Array, part: float) -> Array:
        """`base`, and this part of the error itself."""
        return base + np.float32(part) * self.state


def costs(layer: LayerLinears, load: Callable[[str], Array], hidden: int) -> Costs:
    """The costs in the first layer. Without norms, every channel of the error itself counts the same.

    load: a tensor of the layer, float32.
    """
    norms = [fold for fold in layer.folds if isinstance(fold, NormFold)]
    if not norms:
        return Costs((), np.eye(hidden, dtype=np.float32) / np.float32(hidden))
    gains = _gain(norms[0], load), _gain(norms[-1], load)
    linears = tuple(_scaled(_product(linear, gains[0], load)) for linear in _behind(norms[0], layer, hidden))
    return Costs(linears, _scaled(np.diag(gains[1] * gains[1])))


def _behind(fold: NormFold, layer: LayerLinears, hidden: int) -> list[Linear]:
    entries = [entry for entry in layer.inputs if entry.key in fold.inputs and entry.expert is None]
    return [linear for entry in entries for linear in entry.linears if not linear.kept and linear.n_in == hidden]


def _gain(fold: NormFold, load: Callable[[str], Array]) -> Array:
    gain: Array = load(fold.norm + ".weight").reshape(-1) + np.float32(fold.offset)
    return gain


def _product(linear: Linear, gain: Array, load: Callable[[str], Array]) -> Array:
    name = linear.weight
    weight = matrix({name: load(name)}, linear) * gain
    product: Array = weight.T @ weight
    return product


def _scaled(metric: Array) -> Array:
    """To a trace of 1: so that a wide linear is not all of a mean."""
    scaled: Array = metric / max(float(metric.trace()), float(np.finfo(np.float32).tiny))
    return scaled


def _mean(matrices: Sequence[Array]) -> Array:
    total = np.zeros_like(matrices[0])
    for one in matrices:
        total += one
    return total / np.float32(len(matrices))
