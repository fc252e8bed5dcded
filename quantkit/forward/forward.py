"""The forward pass of a decoder in plain numpy, straight from a checkpoint's tensors and its config.json."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.errors import UnsupportedError
from quantkit.forward.architectures import ARCHITECTURES
from quantkit.forward.arithmetic import softcapped
from quantkit.forward.attention import Layer, attend
from quantkit.forward.description import Architecture, given
from quantkit.forward.feed_forward import feed_forward, mixture
from quantkit.forward.weights import Array, Read, ReadRows, Weights, f32, rows_of_whole

_EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")


def reference_logits(
    read: Read,
    config: Mapping[str, Any],
    tokens: Sequence[int],
    *,
    rows: ReadRows | None = None,
    names: Collection[str] | None = None,
) -> Array:
    """Logits (n_tokens, n_vocab) in float32 for one sequence of token ids.

    `read(name)` gives a whole tensor by its Hugging Face name, in any float dtype, and raises LookupError where there
    is none; `rows(name, start, stop)` gives some rows of it, seen as a matrix (prod(shape[:-1]), shape[-1]), and
    without it whole tensors are read. `names` are those of all tensors; without them what is there is tried. `config`
    is config.json, of an architecture that transformers has. Raises UnsupportedError for an architecture, activation or
    rope type it does not know.
    """
    architecture = find_architecture(config)
    weights = Weights(read, rows or rows_of_whole(read), names)
    base = architecture.base
    if names is not None and f"{base}{architecture.embedding}.weight" not in names:
        base = ""
    embedding = base + architecture.embedding
    eps = float(given(config, *_EPS, default=1e-6 if architecture.norm.kind == "rms" else 1e-5))

    def layer(number: int, at: str) -> Layer:
        return Layer(weights, config, number, at, eps)

    x = np.concatenate([f32(weights.rows(embedding + ".weight", id, id + 1)) for id in tokens])
    x *= np.float32(architecture.embedding_scale(config))
    if architecture.positions:
        x = x + f32(weights.rows(base + architecture.positions + ".weight", 0, len(tokens)))
    if architecture.embedding_norm:
        x = layer(0, "").norm(base + architecture.embedding_norm, x, architecture.norm)
    for number in range(int(given(config, "num_hidden_layers", "n_layer"))):
        x = _through(architecture, layer(number, base + architecture.layer.format(number)), x)
    x = layer(0, "").norm(base + architecture.last_norm, x, architecture.norm)

    tied = bool(given(config, "tie_word_embeddings", default=architecture.tied))
    head = embedding if tied else architecture.head
    logits = weights.linear(head, x, int(config["vocab_size"])) * np.float32(architecture.logit_scale(config))
    return softcapped(logits, config.get(architecture.logit_softcap) if architecture.logit_softcap else None)


def find_architecture(config: Mapping[str, Any]) -> Architecture:
    """The description of the architecture that config.json names; UnsupportedError where there is none."""
    name = (config.get("architectures") or ["LlamaForCausalLM"])[0]
    if name not in ARCHITECTURES:
        raise UnsupportedError(f"the reference forward does not know the architecture {name} of config.json")
    architecture = ARCHITECTURES[name]
    reason = architecture.refused(config)
    if reason:
        raise UnsupportedError(f"the reference forward of {name} does not know {reason}")
    return replace(architecture, **architecture.variant(config))


def _through(architecture: Architecture, layer: Layer, x: Array) -> Array:
    """The stream of hidden states x (n, hidden) after a layer."""
    scale = np.float32(architecture.residual_scale(layer.config))
    seen = _normed(architecture, layer, architecture.attention_norm, x)
    attended = attend(architecture.attention, layer, seen)
    attended = _normed(architecture, layer, architecture.after_attention, attended)
    if architecture.parallel:
        if architecture.feed_norm:
            seen = _normed(architecture, layer, architecture.feed_norm, x)
        return f32(x + attended + _feed(architecture, layer, seen))
    x = f32(x + attended * scale)
    fed = _feed(architecture, layer, _normed(architecture, layer, architecture.feed_norm, x))
    return f32(x + _normed(architecture, layer, architecture.after_feed, fed) * scale)


def _normed(architecture: Architecture, layer: Layer, name: str | None, x: Array) -> Array:
    return layer.norm(layer.at + name, x, architecture.norm) if name else x


def _feed(architecture: Architecture, layer: Layer, x: Array) -> Array:
    experts = architecture.experts
    if experts and experts.layers(layer.config, layer.number):
        return mixture(experts, layer, x)
    return feed_forward(architecture.feed, layer, x)
