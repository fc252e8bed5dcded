"""The forward pass of a decoder or an encoder, from a checkpoint's tensors and config.json."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.altup import Streams, merged, spread, stream
from quantkit.forward.arithmetic import softcapped
from quantkit.forward.arrays import namespace
from quantkit.forward.attention import attend
from quantkit.forward.compressed_attention import compressed_attention
from quantkit.forward.config_keys import given, head_dim
from quantkit.forward.delta_net import delta_net
from quantkit.forward.description import AltUp, Architecture, Laurel
from quantkit.forward.feed_forward import feed_forward, mixture, route
from quantkit.forward.hyper_connections import connect, joined
from quantkit.forward.kimi_delta import kimi_delta
from quantkit.forward.layer import Context, Layer
from quantkit.forward.layer_inputs import add_layer_input, gated_input
from quantkit.forward.mamba import mamba
from quantkit.forward.mamba2 import mamba2
from quantkit.forward.parts import Norm
from quantkit.forward.short_convolution import short_convolution
from quantkit.forward.time_mix import channel_mix, time_mix
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

    def embed(self, tokens: Sequence[int]) -> Array:
        """The hidden states (n_tokens, width) before the first layer."""
        x = self.embedded(tokens)
        if self.architecture.hyper_connections:
            repeated: Array = np.tile(x, (1, self.streams))
            return repeated
        part = self.architecture.altup
        return spread(part, self.weights, self.base, x, self.streams) if part else x

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


class DecoderLayer:
    """One layer in the three steps of calibration; calling it runs all three for one sequence."""

    def __init__(self, decoder: Decoder, layer: Layer) -> None:
        self.decoder, self.architecture, self.layer = decoder, decoder.architecture, layer
        experts = self.architecture.experts
        self.experts = experts if experts and experts.layers(layer.config, layer.number) else None
        self.beside = self.experts.beside if self.experts else None

    def __call__(self, x: Array, context: Context) -> Array:
        if self.architecture.altup:
            return self._one_stream(self.architecture.altup, x, context)
        middle, normed_middle = self.attend(x, context)
        return self.join(middle, self.feed(middle, normed_middle, context), context)

    def _one_stream(self, part: AltUp, x: Array, context: Context) -> Array:
        """The streams x (n, streams * hidden) after the layer, whose parts compute the active one."""
        streams = Streams(part, self.layer, self.architecture.norm, self.decoder.hidden)
        predictions = streams.predict(x)
        middle, normed_middle = self.attend(stream(predictions, streams.active, streams.hidden), context)
        fed = self._normed(self.architecture.after_feed, self.feed(middle, normed_middle, context))
        x = streams.correct(predictions, f32(middle + fed))
        inputs = self.architecture.layer_inputs
        if inputs is None:
            return x
        return streams.add_to_others(
            x, gated_input(inputs, self.layer, self.decoder, streams.scaled(x), context.tokens)
        )

    def attend(self, x: Array, context: Context) -> tuple[Array, Array]:
        """The hidden states (n, width) after attention, and the input of the feed-forward or the experts."""
        architecture = self.architecture
        if part := architecture.hyper_connections:
            around = connect(part, self.layer, part.attention, x)
            normed = self._normed(architecture.norm_before(self.layer.number), around.read)
            middle = around.after(self._mixed(normed, context))
            return middle, self._normed(architecture.feed_norm, connect(part, self.layer, part.feed, middle).read)
        if not architecture.mixes(self.layer.config, self.layer.number):
            feeds = architecture.feeds(self.layer.config, self.layer.number)
            return x, self._normed(architecture.feed_norm if feeds else None, x)
        normed = self._normed(architecture.norm_before(self.layer.number), x)
        attended = self._normed(architecture.after_attention, self._mixed(normed, context), after=0)
        if architecture.parallel:
            normed_middle = self._normed(architecture.feed_norm, x) if architecture.feed_norm else normed
            return f32(x + attended), normed_middle
        middle = f32(x + attended * self._scale())
        if architecture.sum_norms:
            middle = self._normed(architecture.sum_norms[0], middle)
        if not architecture.feeds(self.layer.config, self.layer.number):
            return middle, middle
        if self.architecture.laurel:
            middle = f32((middle + self._low_rank(self.architecture.laurel, normed)) * 0.5**0.5)
        return middle, self._normed(self.beside.norm if self.beside else architecture.feed_norm, middle)

    def feed(self, middle: Array, x: Array, context: Context) -> Array:
        """The output of the feed-forward or the experts for their input x: (n, hidden)."""
        if self.experts:
            return mixture(self.experts, self.layer, x, self._routed(middle, x), context.tokens)
        if not self.architecture.feeds(self.layer.config, self.layer.number):
            nothing: Array = namespace(x).zeros_like(x)
            return nothing
        if self.architecture.channel_mix:
            return channel_mix(self.architecture.channel_mix, self.layer, x)
        return feed_forward(self.architecture.feed, self.layer, x)

    def route(self, middle: Array, x: Array, context: Context) -> tuple[NDArray[np.int64], Array]:
        """The experts of each token and their weights, see `feed_forward.route`."""
        assert self.experts is not None
        return route(self.experts, self.layer, self._routed(middle, x), context.tokens)

    def dense(self, middle: Array) -> Array:
        """The output of the feed-forward that runs beside the experts: (n, hidden)."""
        normed = self._normed(self.architecture.feed_norm, middle)
        return feed_forward(self.architecture.feed, self.layer, normed)

    def join(self, middle: Array, fed: Array, context: Context) -> Array:
        """The hidden states after the layer."""
        architecture, layer = self.architecture, self.layer
        if part := architecture.hyper_connections:
            return connect(part, layer, part.feed, middle).after(fed)
        if architecture.parallel:
            return f32(middle + fed)
        if self.beside:
            dense = self._normed(self.beside.after_dense, self.dense(middle))
            fed = self._normed(self.beside.after_experts, fed) + dense
        x = f32(middle + self._normed(architecture.after_feed, fed, after=1) * self._scale())
        if architecture.sum_norms:
            x = self._normed(architecture.sum_norms[1], x)
        if architecture.layer_inputs:
            x = add_layer_input(architecture.layer_inputs, layer, self.decoder, x, context.tokens)
        return x * layer.vector(layer.at + architecture.layer_scale, x) if architecture.layer_scale else x

    def _low_rank(self, part: Laurel, x: Array) -> Array:
        at, weights = self.layer.at + part.at, self.layer.weights
        out = weights.linear(at + part.left, x, part.rank(self.layer.config))
        out = weights.linear(at + part.right, out, x.shape[1])
        return f32(x + self.layer.norm(at + part.norm, out, self.architecture.norm))

    def _routed(self, middle: Array, x: Array) -> Array:
        """The input of the router."""
        if not self.beside:
            return x
        scale = self.layer.vector(self.layer.at + self.beside.router_scale, x)
        normed = self.layer.norm("", middle, Norm("rms", weighted=False))
        return f32(normed * scale * np.float32(x.shape[1] ** -0.5))

    def _mixed(self, x: Array, context: Context) -> Array:
        if self.architecture.time_mix:
            return time_mix(self.architecture.time_mix, self.layer, x, context)
        if self.architecture.compressed:
            return compressed_attention(self.architecture.compressed, self.layer, x)
        recurrent = self.architecture.delta_net
        if recurrent and recurrent.layers(self.layer.config, self.layer.number):
            return delta_net(recurrent, self.layer, x)
        by_channel = self.architecture.kimi_delta
        if by_channel and by_channel.layers(self.layer.config, self.layer.number):
            return kimi_delta(by_channel, self.layer, x)
        selective = self.architecture.mamba
        if selective and selective.layers(self.layer.config, self.layer.number):
            return mamba(selective, self.layer, x)
        state_space = self.architecture.mamba2
        if state_space and state_space.layers(self.layer.config, self.layer.number):
            if state_space.beside:
                return attend(self.architecture.attention, self.layer, x, context) + mamba2(state_space, self.layer, x)
            return mamba2(state_space, self.layer, x)
        convolution = self.architecture.short_convolution
        if convolution and convolution.layers(self.layer.config, self.layer.number):
            return short_convolution(convolution, self.layer, x)
        only = self.architecture.one_linear
        if only and only.layers(self.layer.config, self.layer.number):
            return self.layer.weights.linear(self.layer.at + only.at + only.linear, x, x.shape[1])
        return attend(self.architecture.attention, self.layer, x, context)

    def _normed(self, name: str | None, x: Array, after: int | None = None) -> Array:
        """x after the norm `name`. `after`: it follows attention (0) or the feed-forward (1)."""
        kinds = self.architecture.norms_after
        kind = self.architecture.norm if after is None or kinds is None else kinds[after]
        return self.layer.norm(self.layer.at + name, x, kind) if name else x

    def _scale(self) -> np.float32:
        return np.float32(self.architecture.residual_scale(self.layer.config))
