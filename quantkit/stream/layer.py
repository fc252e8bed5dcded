"""The tensors of one layer in memory, and a record of the inputs of its linears."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.families.base.native import Source
from quantkit.forward.arrays import namespace, product
from quantkit.forward.linears import PLAIN, Input, LayerLinears, alone
from quantkit.forward.parts import Form
from quantkit.forward.weights import Weights
from quantkit.stream.kept import SampleValues

Array = NDArray[np.float32]


class InputReachedError(Exception):
    """The forward is at the input where `LayerWeights.until` ends it. `x`: that input (n_tokens, n_in)."""

    def __init__(self, x: Array) -> None:
        super().__init__()
        self.x = x


@dataclass(frozen=True)
class LayerWeights(Weights):
    """`tensors`: by name, float32 in the checkpoint's shape. Other tensors are read from the checkpoint when needed.

    `keys`: (linear name, index in its stack) -> key of its input. `inputs`: by key, the first x (n_tokens, n_in) that
    a linear with this input received, and what that linear received later. Each thread uses its own `tapped` copy,
    which has its own `inputs`. `until`: the key of an input that ends the forward with InputReachedError. `values`:
    those of the sample that are computed once.
    """

    tensors: Mapping[str, Array] = field(default_factory=dict)
    keys: Mapping[tuple[str, int], str] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    readers: dict[str, tuple[str, int]] = field(default_factory=dict)
    until: str | None = None
    values: SampleValues | None = None

    def tapped(self, values: SampleValues | None = None) -> "LayerWeights":
        """The same weights, which record the inputs of the linears in `keys`, for one run of a sample."""
        return replace(self, inputs={}, readers={}, values=values)

    def once(self, name: str, compute: Callable[[], Array]) -> Array:
        return compute() if self.values is None else self.values.once(name, compute, self.inputs, self.until)

    def vector(self, name: str) -> Array:
        tensor = self.tensors.get(name)
        return super().vector(name) if tensor is None else tensor.reshape(-1)

    def linear(self, name: str, x: Array, n_out: int, form: Form = PLAIN, index: int = 0) -> Array:
        key = self.keys.get((name, index))
        if key is not None and key == self.until:
            raise InputReachedError(x)
        if key is not None and self.readers.setdefault(key, (name, index)) == (name, index):
            self.inputs[key] = namespace(x).concatenate([self.inputs[key], x]) if key in self.inputs else x
        tensor = self.tensors.get(name + form.weight)
        matrix = self.tensors.get(alone(name + form.weight, index)) if tensor is None else None
        if tensor is None and matrix is None:
            return super().linear(name, x, n_out, form, index)
        if self.round_input is not None:
            x = self.round_input(name, x)
        if matrix is not None:
            return self._with_bias(product(x, matrix.T), name + form.bias, index)
        assert tensor is not None
        n_in = x.shape[1]
        weight = tensor.reshape(-1, *((n_in, n_out) if form.turned else (n_out, n_in)))[index]
        out = product(x, weight if form.turned else weight.T)
        bias = self.tensors.get(name + form.bias)
        if bias is not None:
            out += bias.reshape(-1, n_out)[index]
        return out


def keys_of(inputs: tuple[Input, ...]) -> dict[tuple[str, int], str]:
    """(linear, index in its stack) -> key of its input."""
    return {(linear.name, linear.index or 0): entry.key for entry in inputs for linear in entry.linears}


def stored_names(inputs: Sequence[Input]) -> set[str]:
    """Names of all tensors that the linears of `inputs` may be stored in."""
    return {
        linear.name + ending
        for entry in inputs
        for linear in entry.linears
        for ending in (linear.form.weight, linear.form.bias, "_blocks", "_scales")
    }


def names_outside_experts(native: Source, linears: LayerLinears) -> list[str]:
    """The tensors of a layer that do not belong to a routed expert, sorted."""
    at = native.decoder.at(linears.number)
    of_experts = stored_names([entry for entry in linears.inputs if entry.expert is not None])
    return sorted({name for name in native.tensors if name.startswith(at)} - of_experts)
