"""One layer's tensors in memory, and a tap on what its linears see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.description import Form
from quantkit.forward.linears import PLAIN, Input
from quantkit.forward.weights import Weights

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Held(Weights):
    """`tensors`: by name, float32 in the checkpoint's shape; what is not among them is read where it stands.

    `keys` says for a linear (name, index in its stack) which input it sees; the first x of each goes into `seen`. A
    `tapped` copy has a `seen` of its own, one for each thread.
    """

    tensors: Mapping[str, Array] = field(default_factory=dict)
    keys: Mapping[tuple[str, int], str] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)

    def tapped(self) -> "Held":
        return Held(self.read, self.rows, self.names, self.tensors, self.keys, {})

    def vector(self, name: str) -> Array:
        held = self.tensors.get(name)
        return super().vector(name) if held is None else held.reshape(-1)

    def linear(self, name: str, x: Array, n_out: int, form: Form = PLAIN, index: int = 0) -> Array:
        key = self.keys.get((name, index))
        if key is not None:
            self.seen.setdefault(key, x)
        held = self.tensors.get(name + form.weight)
        if held is None:
            return super().linear(name, x, n_out, form, index)
        n_in = x.shape[1]
        weight = held.reshape(-1, *((n_in, n_out) if form.turned else (n_out, n_in)))[index]
        out: Array = x @ (weight if form.turned else weight.T)
        bias = self.tensors.get(name + form.bias)
        if bias is not None:
            out += bias.reshape(-1, n_out)[index]
        return out


def keys_of(inputs: tuple[Input, ...]) -> dict[tuple[str, int], str]:
    """(linear, index in its stack) -> key of its input."""
    return {(linear.name, linear.index or 0): each.key for each in inputs for linear in each.linears}


def stored_names(inputs: Sequence[Input]) -> set[str]:
    """Names of all tensors that the linears of `inputs` may be stored in."""
    return {
        linear.name + ending
        for each in inputs
        for linear in each.linears
        for ending in (linear.form.weight, linear.form.bias, "_blocks", "_scales")
    }
