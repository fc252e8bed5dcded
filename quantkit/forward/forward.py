"""The forward pass of a decoder or an encoder, from a checkpoint's tensors and config.json."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from quantkit.forward.altup import merged, spread
from quantkit.forward.arithmetic import softcapped
from quantkit.forward.config_keys import given, head_dim
from quantkit.forward.decoder_layer import DecoderLayer
from quantkit.forward.description import Architecture
from quantkit.forward.hyper_connections import joined
from quantkit.forward.layer import Context, Layer
from quantkit.forward.residual_attention import mixed, with_room
from quantkit.forward.weights import Array, Weights, f32

_EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "layernorm_epsilon")


class Decoder:
    """A decoder in parts: the embedding, each layer, and the head. An encoder has no head."""

    def __init__(self, weights: Weights, config: Mapping[str, Any], architecture: Architecture) -> None:
        self.architecture = architecture
        self.weights, self.config = weights, config
        self.base = self.architecture.base
        if weights.names is not None and f"{self.base}{self.architecture.embedding}.weight" not in weights.names:
            self.base = ""
        self.embedding = self.base + self.architecture.embedding
        tied = bool(given(config, "tie_word_embeddings", default=self.architecture.tied))
        self.head = self.embedding if tied and self.architecture.head else self.architecture.head
        self.eps = float(given(config, *_EPS, default=1e-6 if self.architecture.norm.kind == "rms" else 1e-5))
        self.n_layers = int(given(config, "num_hidden_layers", "n_layer", "n_layers"))
        self.hidden = int(given(config, "hidden_size", "n_embd", "d_model", "dim"))
        several = self.architecture.altup or self.architecture.hyper_connections
        self.streams = several.count(config) if several else 1
        if (part := self.architecture.residual_attention) is not None:
            self.streams = 1 + part.states(config, self.n_layers)
        sources = (self.shared_from(number) for number in range(self.n_layers))
        self.shared_layers = frozenset(source for source in sources if source is not None)

    def run(self, tokens: Sequence[int]) -> Array:
        """Logits (n_tokens, n_vocab) in float32 for one sequence of token ids, layer by layer.

        Of an encoder the last hidden states (n_tokens, hidden).
        """
        x, context = self.embed(tokens), self.context(tokens)
        for number in range(self.n_layers):
            x = self.layer(number)(x, context)
        return self.logits(x)

    def context(self, tokens: Sequence[int]) -> Context:
        """What layers need of a sequence beside its hidden states."""
        return Context(tokens, self.shared_layers)

    @property
    def width(self) -> int:
        """Elements of a token's hidden states between layers."""
        return self.streams * self.hidden

    @property
    def fed_width(self) -> int:
        """Elements of what experts read and of the sum of their outputs, between their runs (`before_experts`)."""
        experts = self.architecture.experts
        latent = experts.latent.width(self.config) if experts and experts.latent else 0
        return self.hidden + latent

    def embed(self, tokens: Sequence[int]) -> Array:
        """The hidden states (n_tokens, width) before the first layer."""
        x = self.embedded(tokens)
        if self.architecture.hyper_connections:
            repeated: Array = np.tile(x, (1, self.streams))
            return repeated
        part = self.architecture.altup
        return spread(part, self.weights, self.base, x, self.streams) if part else with_room(x, self.width)

    def embedded(self, tokens: Sequence[int]) -> Array:
        """The embeddings (n_tokens, hidden)."""
        architecture, weights = self.architecture, self.weights
        x = np.concatenate([f32(weights.rows(self.embedding + ".weight", id, id + 1)) for id in tokens])
        x *= np.float32(architecture.embedding_scale(self.config))
        if architecture.positions:
            first = architecture.first_position(self.config)
            x = x + f32(weights.rows(self.base + architecture.positions + ".weight", first, first + len(tokens)))
        if architecture.token_types:
            x = x + f32(weights.rows(self.base + architecture.token_types + ".weight", 0, 1))
        if architecture.embedding_norm:
            kind = architecture.embedding_norm_kind or architecture.norm
            x = self._at(weights, 0, "").norm(self.base + architecture.embedding_norm, x, kind)
        return x

    @property
    def outer_linears(self) -> tuple[str, ...]:
        """Names of the linears outside the layers."""
        head = () if self.head in ("", self.embedding) else (self.head,)
        inputs = self.architecture.layer_inputs
        if inputs is None or not inputs.width(self.config):
            return head
        numbers = range(self.streams - 1)
        return (
            self.base + inputs.projection,
            *(f"{self.base}{part}.{n}" for part in self._stream_projections() for n in numbers),
            *head,
        )

    def _stream_projections(self) -> tuple[str, ...]:
        part = self.architecture.altup
        return (part.projection, part.unembedding) if part else ()

    def shared_from(self, number: int) -> int | None:
        """The earlier layer whose keys and values layer `number` uses; None if it has its own."""
        return self.architecture.attention.shared_from(self.config, number)

    def chosen_by(self, number: int) -> int | None:
        """The layer whose indexer chooses the keys of layer `number`, None without an indexer."""
        indexer = self.architecture.attention.indexer
        if indexer is None:
            return None
        return next(layer for layer in range(number, -1, -1) if indexer.own(self.config, layer) or layer == 0)

    def choosing_layers(self, n_tokens: int) -> frozenset[int]:
        """The layers whose choice of keys later layers use, in a sequence of `n_tokens`: none if it is short."""
        indexer = self.architecture.attention.indexer
        if indexer is None or n_tokens <= indexer.top(self.config):
            return frozenset()
        choosers = ((number, self.chosen_by(number)) for number in range(self.n_layers))
        return frozenset(chooser for number, chooser in choosers if chooser is not None and chooser != number)

    def key_shape(self, number: int) -> tuple[int, int]:
        """Key heads of a layer, and elements of a head."""
        config = self.architecture.per_layer(self.config, number)
        return self.architecture.attention.kv_heads(config), head_dim(config)

    def at(self, number: int) -> str:
        """The prefix of the tensor names of layer `number`."""
        return self.base + self.architecture.layer.format(number)

    @cached_property
    def _around_number(self) -> tuple[str, str]:
        """What is before the number of a layer in its tensors' names, and after it."""
        before, after = (self.base + self.architecture.layer).split("{}")
        return before, after

    def layer_of(self, name: str) -> int | None:
        """The layer of a tensor name, None outside the layers."""
        before, after = self._around_number
        number = name.removeprefix(before).split(after)[0] if name.startswith(before) else ""
        # layers beyond the decoder's own predict a later token, and the forward does not run them
        return int(number) if number.isdecimal() and int(number) < self.n_layers else None

    def layer(self, number: int, weights: Weights | None = None) -> "DecoderLayer":
        """Layer `number`, with `weights` or the decoder's own."""
        return DecoderLayer(self, self._at(weights or self.weights, number, self.at(number)))

    def logits(self, x: Array) -> Array:
        """Logits (n_tokens, n_vocab) from the hidden states after the last layer; those of an encoder, normed."""
        architecture = self.architecture
        if architecture.altup:
            x = merged(architecture.altup, self.weights, self.base, x, self.streams)
        if part := architecture.hyper_connections:
            x = joined(part, self._at(self.weights, 0, ""), self.base + part.head, x)
        if (residual := architecture.residual_attention) is not None:
            states = residual.states(self.config, self.n_layers)
            x = mixed(self._at(self.weights, 0, ""), self.base, residual.before_head, x, states)
        if architecture.last_norm:
            kind = architecture.last_norm_kind or architecture.norm
            x = self._at(self.weights, 0, "").norm(self.base + architecture.last_norm, x, kind)
        if not self.head:
            return x
        logits = self.weights.linear(self.head, x, int(self.config["vocab_size"]))
        logits = logits * np.float32(architecture.logit_scale(self.config))
        return softcapped(logits, self.config.get(architecture.logit_softcap) if architecture.logit_softcap else None)

    def _at(self, weights: Weights, number: int, at: str) -> Layer:
        return Layer(weights, self.architecture.per_layer(self.config, number), number, at, self.eps)
