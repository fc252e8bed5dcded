"""The linears of a layer from its architecture's description, their inputs, and where a scale can be folded."""

from collections.abc import Collection
from dataclasses import replace

from quantkit.forward.config_keys import Config
from quantkit.forward.description import AltUp, Architecture, HyperConnections, LayerInputs
from quantkit.forward.feed_linears import channel_mix, feed_forward, mixture
from quantkit.forward.hyper_connections import STORED
from quantkit.forward.layer_parts import NO_PART, LayerNames
from quantkit.forward.linears import Input, LayerLinears, Linear, NormFold
from quantkit.forward.mixer_linears import mixer_linears


def layer_linears(architecture: Architecture, config: Config, number: int, names: Collection[str]) -> LayerLinears:
    """The linears of layer `number`, their inputs, and the folds that keep the model's output.

    `architecture` comes from find_architecture(config). `names` are the checkpoint's tensors (native names), which
    distinguish stacked from separate experts. Raises nothing.
    """
    base = architecture.base if f"{architecture.base}{architecture.embedding}.weight" in names else ""
    config = architecture.per_layer(config, number)
    layer = LayerNames(config, number, base + architecture.layer.format(number), names)
    attention = mixer_linears(architecture, layer)
    experts = architecture.experts if architecture.experts and architecture.experts.layers(config, number) else None
    dense = NO_PART
    if architecture.channel_mix:
        dense = channel_mix(architecture.channel_mix, layer)
    elif architecture.feeds(config, number) and (experts is None or experts.beside):
        dense = feed_forward(architecture.feed, layer, "feed", "feed.down")
    feed = mixture(experts, layer) if experts else dense

    shared = architecture.parallel and architecture.feed_norm is None
    if shared:  # both parts read the same norm, so `feed` and `attention` are one input
        both = Input("attention", attention.inputs[0].linears + feed.inputs[0].linears)
        inputs = (both, *attention.inputs[1:], *feed.inputs[1:])
        normed = [(architecture.norm_before(number), ("attention", *feed.fed[1:]))]
    else:
        inputs = attention.inputs + feed.inputs
        normed = [(architecture.norm_before(number), attention.fed), (architecture.feed_norm, feed.fed)]
    if experts and experts.beside:
        inputs += dense.inputs
        normed[1:] = [(experts.beside.norm, feed.fed), (architecture.feed_norm, dense.fed)]
        feed = replace(feed, folds=feed.folds + dense.folds)
    if architecture.hyper_connections:
        before_attention, before_feed = _hyper_connections(architecture.hyper_connections, layer)
        inputs = (before_attention, *attention.inputs, before_feed, *feed.inputs)
    if architecture.altup:
        before, after = _altup(architecture.altup, layer)
        inputs = (*before, *inputs, *after)
    if architecture.layer_inputs:
        inputs += _layer_inputs(architecture.layer_inputs, layer)
    norms = tuple(
        NormFold(layer.at + norm, architecture.norm.offset, fed)
        for norm, fed in normed
        if norm is not None and fed and architecture.norm.weighted
    )
    return LayerLinears(number, inputs, norms + attention.folds + feed.folds)


def _altup(part: AltUp, layer: LayerNames) -> tuple[tuple[Input, ...], tuple[Input, ...]]:
    """The inputs of the streams' coefficients, before the layer's parts and after them; llama.cpp keeps these too."""
    at, count = layer.at + part.at, part.count(layer.config)
    router = Linear(at + part.router, layer.hidden, count, kept=True)
    prediction = Linear(at + part.prediction, count, count * count, kept=True)
    correction = Linear(at + part.correction, count, count, kept=True)
    before = Input("altup.router", (router,)), Input("altup.prediction", (prediction,))
    return before, (Input("altup.correction", (correction,)),)


def _hyper_connections(part: HyperConnections, layer: LayerNames) -> tuple[Input, Input]:
    """The inputs of the coefficients of attention and feed-forward: all streams, after a norm without a weight."""
    n_in, n_out = part.count(layer.config) * layer.hidden, part.coefficients(layer.config)
    attention, feed = (Linear(layer.at + name, n_in, n_out, STORED, kept=True) for name in (part.attention, part.feed))
    return Input("streams.attention", (attention,)), Input("streams.feed", (feed,))


def _layer_inputs(part: LayerInputs, layer: LayerNames) -> tuple[Input, ...]:
    """The gate reads hidden states without a norm, and its activation comes before the product: no folds."""
    width = part.width(layer.config)
    if not width:
        return ()
    gate = Linear(layer.at + part.gate, layer.hidden, width)
    out = Linear(layer.at + part.out, width, layer.hidden)
    return Input("layer_input", (gate,)), Input("layer_input.out", (out,))
