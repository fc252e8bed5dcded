"""The order and the scales of a feed-forward's neurons, for runtimes that round activations to 8 bits.

llama.cpp multiplies a K-quant by an input that it rounds to 8 bits with one step for 256 channels (ggml's Q8_K). One
large channel makes the step coarse for all others of its block. The neurons of a feed-forward

    down (act(gate x) * (up x))

may stand in any order, and a neuron's row of `up` may be divided by s if its column of `down` is multiplied by s: the
model stays the same function, in the same bytes.

1. Order: neurons are sorted by what sets the best step of their channel, so that a block has channels of one size.
2. Scales: powers of two, the same for 32 neurons, which also share a block scale of the weights in every GGUF type. So
   the weights are rounded as before, and only the steps of the activations change.

Weights that were rounded before lie on one lattice in each group of 32 columns (see `quant.lattice`). Q6_K has a scale
for 16 columns, so half a group keeps its lattice wherever it stands. Each group puts its large channels in one half;
these halves are sorted, without scales.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.forward.arrays import device, place, square
from quantkit.quant.cross import Cross
from quantkit.quant.grid import Array
from quantkit.quant.lattice import GROUP as LATTICE_GROUP
from quantkit.quant.lattice import lies_on_lattice

REORDERED = GGMLQuantizationType.Q6_K
"""The type of down for which the neurons move: llama.cpp's rounding of its input costs more than that of the weights.
With Q5_K the divergence of two models fell by 5 % and rose by 1 % on one text, and rose by 4 and 5 % on another."""
Part = Literal["gate", "up", "down"]
GROUP = 32
"""Neurons that share a scale: the smallest number of columns that share a scale in Q4_K, Q5_K and the legacy types."""
# A half would make a channel's share of the error even; three quarters leave the least error over blocks of 256.
_POWER = 0.75
# Scales further from the median would waste levels of the 6 bit scales of K-quants.
_MOST_DOUBLINGS = 2


@dataclass(frozen=True)
class NeuronOrder:
    """Neuron `order[i]` moves to place i, intp (n,); there its output is divided by `scale[i]`, float32 (n,)."""

    order: NDArray[np.intp]
    scale: Array

    def rows(self, weight: Array, places: slice, *, divided: bool) -> Array:
        """Rows `places` of gate, whose rows (n, n_in) move; with `divided` of up, where they are divided too.

        Exact: scales are powers of two.
        """
        rows: Array = weight[self.order[places]]
        return rows / self.scale[places, None] if divided else rows

    def columns(self, weight: Array) -> Array:
        """Rows (n, n_in) of down, whose columns move and are multiplied."""
        columns: Array = weight[:, self.order] * self.scale
        return columns

    def gram(self, gram: Array) -> Array:
        """The Gram matrix (n, n) of the input of down; of numpy, or a tensor of torch."""
        order, scale = (place(values, device(gram)) for values in (self.order, self.scale))
        moved = square(gram, order)
        moved /= scale
        moved /= scale[:, None]
        return moved

    def cross(self, cross: Cross) -> Cross:
        """D of the input of down."""
        order, scale = (place(values, device(cross.sums)) for values in (self.order, self.scale))
        return cross.reordered(order).divided(scale)

    def squares(self, squares: Array) -> Array:
        """The mean squares (n,) of the input of down."""
        moved: Array = squares[self.order] / (self.scale * self.scale)
        return moved

    def restored_rows(self, rows: Array, *, divided: bool) -> Array:
        """The inverse of `rows`, for the whole matrix."""
        restored = np.empty_like(rows)
        restored[self.order] = rows * self.scale[:, None] if divided else rows
        return restored

    def restored_columns(self, rows: Array) -> Array:
        """The inverse of `columns`, for some rows."""
        restored = np.empty_like(rows)
        restored[:, self.order] = rows / self.scale
        return restored


@dataclass(frozen=True)
class Moved:
    """A matrix of a GGUF tensor whose neurons have another order in the files `labels`."""

    part: Part
    order: NeuronOrder
    labels: frozenset[str]

    def rows(self, weight: Array, start: int, stop: int) -> Array:
        """Rows start..stop of the matrix in its new order, from the source's (n_out, n_in)."""
        if self.part == "down":
            return self.order.columns(weight[start:stop])
        return self.order.rows(weight, slice(start, stop), divided=self.part == "up")

    def restored(self, rows: Array) -> Array:
        """Rows (n, n_in) of a written matrix in the source's order: all rows of gate or up, or some of down."""
        if self.part == "down":
            return self.order.restored_columns(rows)
        return self.order.restored_rows(rows, divided=self.part == "up")


def matrix_key(tensor: str, number: int) -> str:
    """The key of matrix `number` of a GGUF tensor."""
    return f"{tensor}/{number}"


def tensor_of(key: str) -> str:
    """The GGUF tensor of a key."""
    return key.rpartition("/")[0]


def neuron_order(squares: Array, down: Array) -> NeuronOrder | None:
    """The order for an input of down with the mean squares `squares` (n,), and its weights `down` (n_out, n).

    A step t of channel i costs t^2 |w_i|^2, so channels of equal |x_i| / |w_i| should share a block. None if n is not
    whole groups, or if no token reached the input.
    """
    if len(squares) % GROUP or not np.any(squares > 0):
        return None
    norms = np.sqrt(np.einsum("oi,oi->i", down, down, dtype=np.float64))
    sizes = np.sqrt(squares.astype(np.float64))
    wanted = np.maximum(sizes, 1e-6 * sizes.max()) / np.maximum(norms, 1e-6 * max(norms.max(), 1e-30))
    if lies_on_lattice(down):
        return NeuronOrder(_by_halves(wanted), np.ones(len(wanted), np.float32))
    order = np.argsort(-wanted, kind="stable")
    of_group = _POWER * np.log2(wanted[order]).reshape(-1, GROUP).mean(axis=1)
    doublings = np.clip(np.rint(of_group - np.median(of_group)), -_MOST_DOUBLINGS, _MOST_DOUBLINGS)
    return NeuronOrder(order, np.repeat(np.exp2(doublings), GROUP).astype(np.float32))


def _by_halves(wanted: Array) -> NDArray[np.intp]:
    """The order of weights on a lattice: halves of its groups, sorted by the mean of log `wanted` (n,)."""
    within = np.argsort(-wanted.reshape(-1, LATTICE_GROUP), axis=1, kind="stable")
    halves = (within + LATTICE_GROUP * np.arange(len(within))[:, None]).reshape(-1, LATTICE_GROUP // 2)
    means = np.log2(wanted)[halves].mean(axis=1)
    order: NDArray[np.intp] = halves[np.argsort(-means, kind="stable")].reshape(-1)
    return order
