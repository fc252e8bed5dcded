"""Per-layer embeddings (Gemma 3n): a vector for each token and layer gates a small part at the end of the layer."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from quantkit.forward.arithmetic import activation
from quantkit.forward.arrays import Array, device, namespace, place
from quantkit.forward.config_keys import given
from quantkit.forward.description import Architecture, LayerInputs
from quantkit.forward.layer import Layer
from quantkit.forward.weights import f32


class Model(Protocol):
    """The decoder, as far as a layer's input depends on it."""

    architecture: Architecture
    base: str

    def embedded(self, tokens: Sequence[int]) -> Array:
        """The embeddings of the tokens, (n, hidden)."""


def add_layer_input(part: LayerInputs, layer: Layer, model: Model, x: Array, tokens: Sequence[int]) -> Array:
    """The hidden states x (n, hidden) after the layer's gated part: (n, hidden)."""
    return f32(x + gated_input(part, layer, model, x, tokens)) if part.width(layer.config) else x


def gated_input(part: LayerInputs, layer: Layer, model: Model, x: Array, tokens: Sequence[int]) -> Array:
    """The layer's vectors, gated by x (n, hidden), projected and normed: (n, hidden)."""
    width = part.width(layer.config)
    gate = layer.weights.linear(layer.at + part.gate, x, width)
    gate = activation(given(layer.config, *part.activation, default=part.default_activation))(gate)
    gate *= layer_input(part, layer, model, x, tokens)
    out = layer.weights.linear(layer.at + part.out, gate, x.shape[1])
    return layer.norm(layer.at + part.after, out, model.architecture.norm)


def layer_input(part: LayerInputs, layer: Layer, model: Model, x: Array, tokens: Sequence[int]) -> Array:
    """The vectors of `layer` for `tokens`: (n, width), beside x."""
    width, columns = part.width(layer.config), slice(layer.number * part.width(layer.config), None)
    embedded = place(model.embedded(tokens), device(x))
    projected = layer.weights.linear(model.base + part.projection, embedded, width, index=layer.number)
    projected *= embedded.shape[1] ** -0.5
    projected = layer.norm(model.base + part.norm, projected, model.architecture.norm)
    known = np.asarray(tokens)
    if table := part.rows(layer.config):
        known = np.where(known < table, known, 0)
    ids, order = np.unique(known, return_inverse=True)
    rows = [f32(layer.weights.rows(f"{model.base}{part.embedding}.weight", id, id + 1)) for id in ids.tolist()]
    token_rows = (
        namespace(rows[0]).concatenate([row[:, columns][:, :width] for row in rows])[order.tolist()] * width**0.5
    )
    vectors: Array = (projected + place(token_rows, device(x))) * 2**-0.5
    return vectors
