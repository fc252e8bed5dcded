"""One layer of a decoder or an encoder, in the steps of calibration."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.altup import Streams, stream
from quantkit.forward.arrays import namespace
from quantkit.forward.attention import attend
from quantkit.forward.compressed_attention import compressed_attention
from quantkit.forward.delta_net import delta_net
from quantkit.forward.description import AltUp, HyperConnections, Laurel
from quantkit.forward.feed_forward import feed_forward, from_experts, latent_width, mixture, route, to_experts
from quantkit.forward.hyper_connections import Connection, connect
from quantkit.forward.kimi_delta import kimi_delta
from quantkit.forward.kimi_parts import ResidualAttention
from quantkit.forward.layer import Context, Layer
from quantkit.forward.layer_inputs import add_layer_input, gated_input
from quantkit.forward.linears import DOWN, SHARED_DOWN, Input
from quantkit.forward.mamba import mamba
from quantkit.forward.mamba2 import mamba2
from quantkit.forward.parts import Norm
from quantkit.forward.residual_attention import added, mixed, stored_or_added, with_room
from quantkit.forward.short_convolution import short_convolution
from quantkit.forward.time_mix import channel_mix, time_mix
from quantkit.forward.weights import Array, f32

if TYPE_CHECKING:
    from quantkit.forward.forward import Decoder

MIDDLE = "middle"
"""The name of the hidden states after attention, see `Weights.once`."""


class DecoderLayer:
    """One layer in the three steps of calibration; calling it runs all three for one sequence."""

    def __init__(self, decoder: "Decoder", layer: Layer) -> None:
        self.decoder, self.architecture, self.layer = decoder, decoder.architecture, layer
        experts = self.architecture.experts
        self.experts = experts if experts and experts.layers(layer.config, layer.number) else None
        self.beside = self.experts.beside if self.experts else None

    def completes(self, entry: Input) -> bool:
        """Whether the outputs of the input's linear are added to the states of `attend`, and nothing else later is.

        Of routed experts they are all experts' outputs together. An output is added times `output_scale`.
        """
        of, experts = self.architecture, self.experts
        if of.altup or of.hyper_connections or of.residual_attention or of.channel_mix or of.after_feed:
            return False
        if experts is None:
            return entry.key == DOWN
        if experts.beside or latent_width(experts, self.layer) or (experts.weighted_input and entry.expert is not None):
            return False
        if experts.shared and experts.shared.inner(self.layer.config) and not experts.shared_gate:
            return entry.key == SHARED_DOWN
        return entry.expert is not None and entry.key.endswith(".down")

    def output_scale(self, entry: Input) -> np.float32:
        """By which the output of an input that `completes` the layer is multiplied before it is added."""
        scale, part = np.float32(1) if self.architecture.parallel else self._scale(), self.architecture.feed
        if self.experts:
            chosen = self.experts.shared if entry.expert is None else self.experts.expert or self.experts.stacked
            assert chosen is not None
            part = chosen
        return scale * np.float32(part.multipliers(self.layer.config)[1]) if part.multipliers else scale

    def __call__(self, x: Array, context: Context) -> Array:
        if self.architecture.altup:
            return self._one_stream(self.architecture.altup, x, context)
        if part := self.architecture.hyper_connections:
            # once for both: `attend` and `join` each compute them, and an input of a linear would count twice
            middle, around = self._around_feed(part, x, context)
            return around.after(self.feed(middle, self._normed(self.architecture.feed_norm, around.read), context))
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
        architecture, once = self.architecture, self.layer.weights.once
        if self.experts and self.experts.early:
            context.layer_input.clear()
            context.layer_input[self.layer.number] = x
        if part := architecture.hyper_connections:
            middle, around = self._around_feed(part, x, context)
            return middle, self._normed(architecture.feed_norm, around.read)
        if architecture.residual_attention:
            return self._attend_to_states(architecture.residual_attention, x, context)
        if not architecture.mixes(self.layer.config, self.layer.number):
            feeds = architecture.feeds(self.layer.config, self.layer.number)
            return x, self._normed(architecture.feed_norm if feeds else None, x)
        if architecture.parallel:
            normed = self._normed(architecture.norm_before(self.layer.number), x)
            middle = once(MIDDLE, lambda: f32(x + self._attended(normed, context)))
            return middle, self._normed(architecture.feed_norm, x) if architecture.feed_norm else normed
        middle = once(MIDDLE, lambda: self._after_attention(x, context))
        if not architecture.feeds(self.layer.config, self.layer.number):
            return middle, middle
        return middle, self._normed(self.beside.norm if self.beside else architecture.feed_norm, middle)

    def _after_attention(self, x: Array, context: Context) -> Array:
        """The hidden states after attention."""
        architecture = self.architecture
        normed = self._normed(architecture.norm_before(self.layer.number), x)
        middle = f32(x + self._attended(normed, context) * self._scale())
        if architecture.sum_norms:
            middle = self._normed(architecture.sum_norms[0], middle)
        if architecture.laurel and architecture.feeds(self.layer.config, self.layer.number):
            middle = f32((middle + self._low_rank(architecture.laurel, normed)) * 0.5**0.5)
        return middle

    def _attended(self, normed: Array, context: Context) -> Array:
        return self._normed(self.architecture.after_attention, self._mixed(normed, context), after=0)

    def _after_attention_to_streams(self, part: HyperConnections, x: Array, context: Context) -> Array:
        """The streams after attention."""
        around = connect(part, self.layer, part.attention, x)
        normed = self._normed(self.architecture.norm_before(self.layer.number), around.read)
        return around.after(self._mixed(normed, context))

    def _around_feed(self, part: HyperConnections, x: Array, context: Context) -> tuple[Array, Connection]:
        """The streams after attention, and how the feed-forward reads them and adds to them."""
        middle = self.layer.weights.once(MIDDLE, lambda: self._after_attention_to_streams(part, x, context))
        return middle, connect(part, self.layer, part.feed, middle)

    def _attend_to_states(self, part: ResidualAttention, x: Array, context: Context) -> tuple[Array, Array]:
        """As `attend`, where each part reads a mixture of earlier hidden states."""
        layer = self.layer

        def after_attention() -> Array:
            read = mixed(layer, layer.at, part.before_attention, x, part.states(layer.config, layer.number))
            attended = self._mixed(self._normed(self.architecture.norm_before(layer.number), read), context)
            return stored_or_added(part, layer, x, attended)

        middle = layer.weights.once(MIDDLE, after_attention)
        stored = part.states(layer.config, layer.number + 1)
        read = mixed(layer, layer.at, part.before_feed, middle, stored)
        return middle, self._normed(self.architecture.feed_norm, read)

    def feed(self, middle: Array, x: Array, context: Context) -> Array:
        """The output of the feed-forward or the experts for their input x: (n, hidden)."""
        if self.experts:
            return mixture(self.experts, self.layer, x, self._routed(middle, x, context), context.tokens)
        if not self.architecture.feeds(self.layer.config, self.layer.number):
            nothing: Array = namespace(x).zeros_like(x)
            return nothing
        if self.architecture.channel_mix:
            return channel_mix(self.architecture.channel_mix, self.layer, x)
        return feed_forward(self.architecture.feed, self.layer, x)

    def route(self, middle: Array, x: Array, context: Context) -> tuple[NDArray[np.int64], Array]:
        """The experts of each token and their weights, see `feed_forward.route`."""
        assert self.experts is not None
        return route(self.experts, self.layer, self._routed(middle, x, context), context.tokens)

    @property
    def expert_width(self) -> int:
        """Elements of what routed experts read."""
        assert self.experts is not None
        return latent_width(self.experts, self.layer) or self.decoder.hidden

    def before_experts(self, x: Array, from_shared: Array | None) -> tuple[Array, Array]:
        """What routed experts read, and the sum to which they add, both of `Decoder.fed_width` elements.

        With a latent, the sum is the latent's; what the shared expert gave follows it.
        """
        assert self.experts is not None
        width, n_before = self.decoder.fed_width, latent_width(self.experts, self.layer)
        seen = with_room(to_experts(self.experts, self.layer, x), width)
        if from_shared is None:
            zeros: Array = namespace(x).zeros_like(seen)
            return seen, zeros
        if n_before:
            nothing = with_room(namespace(x).zeros_like(x[:, :1]), n_before)
            from_shared = namespace(x).concatenate([nothing, from_shared], axis=1)
        return seen, with_room(from_shared, width)

    def after_experts(self, fed: Array) -> Array:
        """The output (n, hidden) of all experts from the sum that `before_experts` began."""
        assert self.experts is not None
        width = latent_width(self.experts, self.layer)
        if not width:
            return fed
        return f32(from_experts(self.experts, self.layer, fed[:, :width]) + fed[:, width : width + self.decoder.hidden])

    def dense(self, middle: Array) -> Array:
        """The output of the feed-forward that runs beside the experts: (n, hidden)."""
        normed = self._normed(self.architecture.feed_norm, middle)
        return feed_forward(self.architecture.feed, self.layer, normed)

    def join(self, middle: Array, fed: Array, context: Context) -> Array:
        """The hidden states after the layer."""
        architecture, layer = self.architecture, self.layer
        if part := architecture.hyper_connections:
            return connect(part, layer, part.feed, middle).after(fed)
        if architecture.residual_attention:
            return added(middle, fed)
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

    def _routed(self, middle: Array, x: Array, context: Context) -> Array:
        """The input of the router."""
        if self.experts and self.experts.early:
            return context.layer_input[self.layer.number]
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
