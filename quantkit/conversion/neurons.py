"""Which feed-forwards of a layer can have their neurons in another order in a GGUF, and the order in a work folder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.linears import LayerLinears, Linear, RowFold
from quantkit.quant.neurons import Moved, NeuronOrder, Part

Array = NDArray[np.float32]
_INPUTS = ("feed.down", "shared.down")


@dataclass(frozen=True)
class Neurons:
    """The linears of a gated feed-forward without biases; neuron i is row i of gate and up, and column i of down."""

    gate: Linear
    up: Linear
    down: Linear
    input: str

    @property
    def parts(self) -> dict[Part, Linear]:
        """The linears by their part."""
        return {"gate": self.gate, "up": self.up, "down": self.down}


def neurons_of(layer: LayerLinears, expert: int | None, tensors: Mapping[str, Array]) -> Iterator[Neurons]:
    """The feed-forwards of one routed expert, or with None all others of the layer, whose neurons can move."""
    for fold in layer.folds:
        if not isinstance(fold, RowFold) or not (fold.input in _INPUTS or fold.input.startswith("expert.")):
            continue
        (down, *others), up = layer.find(fold.input).linears, fold.linear
        if layer.find(fold.input).expert != expert or others or fold.rows != tuple(range(up.n_out)):
            continue
        readers = next(entry.linears for entry in layer.inputs if up in entry.linears)
        gates = [linear for linear in readers if linear.n_out == up.n_out and linear != up and not linear.kept]
        if len(gates) == 1 and not _has_vectors((*gates, up), tensors):
            yield Neurons(gates[0], up, down, fold.input)


def _has_vectors(linears: tuple[Linear, ...], tensors: Mapping[str, Array]) -> bool:
    """Whether a bias, a norm or another vector has one value for each neuron."""
    parents = {linear.name.rpartition(".")[0] for linear in linears}
    size = linears[0].n_out
    biased = any(linear.name + linear.form.bias in tensors for linear in linears)
    return biased or any(
        len(tensor.shape) == 1 and len(tensor) == size and name.rpartition(".")[0].startswith(tuple(parents))
        for name, tensor in tensors.items()
    )


def save_orders(path: Path, moved: Mapping[str, Moved]) -> None:
    """Write the orders of a layer's tensors into the work folder; keys: `matrix_key`."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for key, entry in moved.items():
        arrays[f"{key}|{entry.part}|order"] = entry.order.order.astype(np.int32)
        arrays[f"{key}|{entry.part}|scale"] = entry.order.scale
        arrays[f"{key}|{entry.part}|labels"] = np.array(sorted(entry.labels))
    partial = path.with_suffix(".new.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def load_orders(path: Path) -> dict[str, Moved]:
    """The orders of `save_orders`; none without the file."""
    if not path.exists():
        return {}
    moved = {}
    with np.load(path) as arrays:
        for name in arrays.files:
            key, part, kind = name.split("|")
            if kind == "order":
                order = NeuronOrder(arrays[name].astype(np.intp), arrays[f"{key}|{part}|scale"])
                labels = frozenset(arrays[f"{key}|{part}|labels"].tolist())
                moved[key] = Moved(cast(Part, part), order, labels)
    return moved
