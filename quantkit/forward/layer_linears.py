"""The linears of a layer from its architecture's description, their inputs, and where a scale can be folded."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property

from quantkit.forward import mamba2
from quantkit.forward.config_keys import Config, given, head_dim
from quantkit.forward.delta_net import sizes_of
from quantkit.forward.description import AltUp, Architecture, Experts, FeedForward, Laurel, LayerInputs
from quantkit.forward.linears import Input, LayerLinears, Linear, NormFold, RowFold
from quantkit.forward.mixers import Attention, ChannelMix, DeltaNet, Indexer, Mamba, Mamba2, ShortConvolution, TimeMix
from quantkit.forward.time_mix import BARE, low_rank_names


def layer_linears(architecture: Architecture, config: Config, number: int, names: Collection[str]) -> LayerLinears:
    """The linears of layer `number`, their inputs, and the folds that keep the model's output.

    `architecture` comes from find_architecture(config). `names` are the checkpoint's tensors (native names), which
    distinguish stacked from separate experts. Raises nothing.
    """
    base = architecture.base if f"{architecture.base}{architecture.embedding}.weight" in names else ""
    config = architecture.per_layer(config, number)
    layer = _LayerNames(config, number, base + architecture.layer.format(number), names)
    recurrent = architecture.delta_net
    if not architecture.mixes(config, number):
        attention = _NO_PART
    elif architecture.time_mix:
        attention = _time_mix(architecture.time_mix, layer)
    elif recurrent and recurrent.layers(config, number):
        attention = _delta_net(recurrent, layer)
    elif (selective := architecture.mamba) and selective.layers(config, number):
        attention = _mamba(selective, layer)
    elif (state_space := architecture.mamba2) and state_space.layers(config, number):
        attention = _mamba2(state_space, layer)
        if state_space.beside:
            attention = _side_by_side(_attention(architecture.attention, layer), attention)
    elif (convolution := architecture.short_convolution) and convolution.layers(config, number):
        attention = _short_convolution(convolution, layer)
    elif (only := architecture.one_linear) and only.layers(config, number):
        linear = Linear(layer.at + only.at + only.linear, layer.hidden, layer.hidden)
        attention = _Part((Input("attention", (linear,)),), (), ("attention",))
    else:
        attention = _attention(architecture.attention, layer)
    if architecture.laurel:
        attention = _with_laurel(architecture.laurel, layer, attention)
    experts = architecture.experts if architecture.experts and architecture.experts.layers(config, number) else None
    dense = _NO_PART
    if architecture.channel_mix:
        dense = _channel_mix(architecture.channel_mix, layer)
    elif architecture.feeds(config, number) and (experts is None or experts.beside):
        dense = _feed_forward(architecture.feed, layer, "feed", "feed.down")
    feed = _mixture(experts, layer) if experts else dense

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


@dataclass(frozen=True)
class _LayerNames:
    config: Config
    number: int
    at: str
    names: Collection[str]

    @cached_property
    def hidden(self) -> int:
        return int(given(self.config, "hidden_size", "n_embd", "d_model", "dim"))


@dataclass(frozen=True)
class _Part:
    """A part's inputs, its own first; the folds within it; the keys of the inputs that read the norm before it."""

    inputs: tuple[Input, ...]
    folds: tuple[NormFold | RowFold, ...]
    fed: tuple[str, ...]


_NO_PART = _Part((), (), ())


def _attention(part: Attention, layer: _LayerNames) -> _Part:
    return _latent(part, layer) if part.latent else _plain(part, layer)


def _plain(part: Attention, layer: _LayerNames) -> _Part:
    config, at = layer.config, layer.at + part.at
    heads, kv_heads = int(given(config, "num_attention_heads", "n_head", "n_heads")), part.kv_heads(config)
    size = head_dim(config)
    shared_by = heads // kv_heads
    readers: tuple[Linear, ...]
    first, step = 0, size  # first row of the values, and rows from one key head to the next
    own_values = not part.keys_as_values(config, layer.number)
    shares = part.shared_from(config, layer.number) is not None
    if part.fused is None:
        counts = [2 * heads if part.gated else heads, kv_heads, kv_heads]
        if shares or not own_values:
            counts = counts[: 1 if shares else 2]
        readers = tuple(
            Linear(at + name, layer.hidden, count * size, part.form)
            for name, count in zip(part.separate, counts, strict=False)
        )
    else:
        readers = (Linear(at + part.fused, layer.hidden, (heads + 2 * kv_heads) * size, part.form),)
        first, step = (heads + kv_heads) * size, size
        if part.grouped:
            first, step = (shared_by + 1) * size, (shared_by + 2) * size
    rows = _rows_of_heads(first, step, heads, shared_by, size)
    out = Linear(at + part.out, heads * size, layer.hidden, part.form)
    # a gate with one row for each head saves nothing, and few loaders take such a shape
    per_head = part.gate_per_head(config)
    width = part.gate_width(config, heads)
    gates = (Linear(at + part.gate, layer.hidden, width, part.form, kept=per_head),) if part.gate else ()
    inputs = (Input("attention", readers + gates), Input("attention.out", (out,)))
    clipped = part.clip is not None and config.get(part.clip) is not None
    foldable = own_values and not shares and not clipped and part.value_norm is None
    folds = (RowFold(readers[-1], rows, "attention.out"),) if foldable else ()
    return _Part(inputs, folds, ("attention",))


def _delta_net(part: DeltaNet, layer: _LayerNames) -> _Part:
    at, sizes = layer.at + part.at, sizes_of(part, layer.config)
    wide: tuple[tuple[str, int], ...]
    narrow: tuple[tuple[str, int], ...]
    if part.fused:
        wide = ((part.fused[0], sizes.channels + sizes.values),)
        narrow = ((part.fused[1], 2 * sizes.value_heads),)
    else:
        wide = ((part.separate[0], sizes.channels), (part.separate[1], sizes.values))
        narrow = ((part.separate[2], sizes.value_heads), (part.separate[3], sizes.value_heads))
    # beta and the decay have a row for each head: too few to save anything, and few loaders take such a shape
    readers = (
        *(Linear(at + name, layer.hidden, n_out) for name, n_out in wide),
        *(Linear(at + name, layer.hidden, n_out, kept=True) for name, n_out in narrow),
    )
    out = Linear(at + part.out, sizes.values, layer.hidden)
    # what enters the last linear was normed and gated, so no row before it is linear in it
    return _Part((Input("attention", readers), Input("attention.out", (out,))), (), ("attention",))


def _mamba(part: Mamba, layer: _LayerNames) -> _Part:
    at, config = layer.at + part.at, layer.config
    inner, state, rank = part.inner(config), part.state(config), part.rank(config)
    projection = Linear(at + part.projection, layer.hidden, 2 * inner)
    # these two have a few columns or rows, and runtimes read the weight of the second one themselves
    selection = Linear(at + part.selection, inner, rank + 2 * state, kept=True)
    steps = Linear(at + part.steps, rank, inner, kept=True)
    out = Linear(at + part.out, inner, layer.hidden)
    inputs = (
        Input("attention", (projection,)),
        Input("mamba.selection", (selection,)),
        Input("mamba.steps", (steps,)),
        Input("attention.out", (out,)),
    )
    # values pass a nonlinear function before they enter another linear, and so does the gate
    return _Part(inputs, (), ("attention",))


def _mamba2(part: Mamba2, layer: _LayerNames) -> _Part:
    at, sizes = layer.at + part.at, mamba2.sizes_of(part, layer.config)
    projection = Linear(at + part.projection, layer.hidden, sizes.projected)
    out = Linear(at + part.out, sizes.inner, layer.hidden)
    key = "mamba.out" if part.beside else "attention.out"
    inputs = (Input("attention", (projection,)), Input(key, (out,)))
    # without the norm the output is gated, and no row before it is linear in it
    folds = (NormFold(at + part.norm, 0.0, (key,)),) if part.has_norm(layer.config) else ()
    return _Part(inputs, folds, ("attention",))


def _time_mix(part: TimeMix, layer: _LayerNames) -> _Part:
    """Every linear reads a mixture of its own; the low-rank ones are small, and llama.cpp keeps them."""
    at, config, hidden = layer.at + part.at, layer.config, layer.hidden
    keys = (f"attention.{letter}" for letter in "rkvg")
    inputs = [Input(key, (Linear(at + name, hidden, hidden),)) for name, key in zip(part.separate, keys, strict=False)]
    if part.goose is None:
        rank, decay_rank = part.rank(config), part.decay_rank(config)
        mixtures = Linear(at + "time_maa_w1", hidden, 5 * rank, BARE, kept=True)
        low = (
            ("w", Linear(at + "time_decay_w1", hidden, decay_rank, BARE, kept=True)),
            ("w.up", Linear(at + "time_decay_w2", decay_rank, hidden, BARE, kept=True)),
        )
        inputs = [Input("attention.mixtures", (mixtures,)), *inputs]
        inputs += [Input(f"attention.{key}", (linear,)) for key, linear in low]
    else:
        for name in "wag" if layer.number == 0 else "wagv":
            width = part.goose.rank(config, name)
            down, up, form = low_rank_names(at, name, stored=f"{at}{name}1" in layer.names)
            low_rank = Linear(down, hidden, width, form, kept=True)
            if name == "v":  # it reads what the values read
                inputs[2] = replace(inputs[2], linears=(*inputs[2].linears, low_rank))
            else:
                inputs.append(Input(f"attention.{name}.down", (low_rank,)))
            inputs.append(Input(f"attention.{name}.up", (Linear(up, width, hidden, form, kept=True),)))
    inputs.append(Input("attention.out", (Linear(at + part.out, hidden, hidden),)))
    return _Part(tuple(inputs), (), ())


def _channel_mix(part: ChannelMix, layer: _LayerNames) -> _Part:
    at, hidden, inner = layer.at + part.at, layer.hidden, part.inner(layer.config)
    inputs = [
        Input("feed", (Linear(at + part.key, hidden, inner),)),
        Input("feed.down", (Linear(at + part.value, inner, hidden),)),
    ]
    if part.receptance:
        inputs.append(Input("feed.receptance", (Linear(at + part.receptance[0], hidden, hidden),)))
    return _Part(tuple(inputs), (), ())


def _side_by_side(first: _Part, second: _Part) -> _Part:
    """Two parts that read the same norm."""
    both = replace(first.inputs[0], linears=first.inputs[0].linears + second.inputs[0].linears)
    return _Part((both, *first.inputs[1:], *second.inputs[1:]), first.folds + second.folds, first.fed)


def _short_convolution(part: ShortConvolution, layer: _LayerNames) -> _Part:
    at, hidden = layer.at + part.at, layer.hidden
    projection = Linear(at + part.projection, hidden, 3 * hidden)
    out = Linear(at + part.out, hidden, hidden)
    inputs = (Input("attention", (projection,)), Input("attention.out", (out,)))
    # the second gate is a factor of the last linear's input
    return _Part(inputs, (RowFold(projection, _rows(hidden, 2 * hidden, 1), "attention.out"),), ("attention",))


def _latent(part: Attention, layer: _LayerNames) -> _Part:
    config, at, hidden = layer.config, layer.at + part.at, layer.hidden
    heads, rank = int(config["num_attention_heads"]), int(config["kv_lora_rank"])
    nope, rope, value = (int(config[f"{key}_head_dim"]) for key in ("qk_nope", "qk_rope", "v"))
    n_queries, short = heads * (nope + rope), int(config.get("q_lora_rank") or 0)

    joint = Linear(at + "kv_a_proj_with_mqa", hidden, rank + rope)
    kv = Linear(at + "kv_b_proj", rank, heads * (nope + value))
    out = Linear(at + part.out, heads * value, hidden, part.form)
    first = Linear(at + "q_a_proj", hidden, short) if short else Linear(at + "q_proj", hidden, n_queries)
    readers, of_queries = _indexer(part.indexer, layer, at, short)
    inputs = [Input("attention", (first, joint, *readers))]
    norms = []
    if short:
        inputs.append(Input("attention.q", (Linear(at + "q_b_proj", short, n_queries), *of_queries)))
        norms.append(NormFold(at + "q_a_layernorm", part.norm.offset, ("attention.q",)))
    inputs += [Input("attention.kv", (kv,)), Input("attention.out", (out,))]
    norms.append(NormFold(at + "kv_a_layernorm", part.norm.offset, ("attention.kv",)))
    rows = tuple(head * (nope + value) + nope + i for head in range(heads) for i in range(value))
    return _Part(tuple(inputs), (*norms, RowFold(kv, rows, "attention.out")), ("attention",))


def _indexer(
    part: Indexer | None, layer: _LayerNames, at: str, rank: int
) -> tuple[tuple[Linear, ...], tuple[Linear, ...]]:
    """The indexer's linears over the input of attention and over the compressed queries.

    They are small and decide which tokens are seen at all, so they keep their precision.
    """
    if part is None or not part.own(layer.config, layer.number):
        return (), ()
    heads, size = part.heads(layer.config), part.width(layer.config)
    keys = Linear(at + part.at + part.keys, layer.hidden, size, kept=True)
    weights = Linear(at + part.at + part.weights, layer.hidden, heads, kept=True)
    return (keys, weights), (Linear(at + part.at + part.queries, rank, heads * size, kept=True),)


def _feed_forward(
    part: FeedForward, layer: _LayerNames, key: str, down_key: str, expert: int | None = None, index: int | None = None
) -> _Part:
    """`expert`: the expert's number, which `part.at` may have a place for; `index`: its index in stacked tensors."""
    inner, at = part.inner(layer.config), layer.at + part.at.format(expert)

    def linear(name: str, n_in: int, n_out: int) -> Linear:
        return Linear(at + name, n_in, n_out, part.form, index)

    readers: tuple[Linear, ...]
    if part.fused:
        readers = (linear(part.fused, layer.hidden, 2 * inner),)
    else:
        readers = tuple(linear(name, layer.hidden, inner) for name in (part.gate, part.up) if name)
    down = Linear(at + part.down, inner, layer.hidden, part.down_form, index)
    inputs = (Input(key, readers, expert), Input(down_key, (down,), expert))
    # Up is linear only as a factor of the gate: without a gate it enters the activation, clamped it is limited.
    is_linear = (part.fused or part.gate) and not part.clamped
    folds = (RowFold(readers[-1], _rows_of_up(part, inner), down_key),) if is_linear else ()
    return _Part(inputs, folds, (key,))


def _rows_of_up(part: FeedForward, inner: int) -> tuple[int, ...]:
    if not part.fused:
        return _rows(0, inner, 1)
    return _rows(1, 2 * inner, 2) if part.alternating else _rows(inner, 2 * inner, 1)


@cache
def _rows(start: int, stop: int, step: int) -> tuple[int, ...]:
    # hundreds of experts share one tuple
    return tuple(range(start, stop, step))


@cache
def _rows_of_heads(first: int, step: int, heads: int, shared_by: int, size: int) -> tuple[int, ...]:
    """The row of the values for each input of attention's last linear; all layers share one tuple."""
    return tuple(first + head // shared_by * step + i for head in range(heads) for i in range(size))


def _with_laurel(part: Laurel, layer: _LayerNames, attention: _Part) -> _Part:
    """Attention and the low-rank residual, whose linears are small: llama.cpp keeps them as they are.

    The residual also adds the normed hidden states, so no scale can be folded into that norm.
    """
    at, rank = layer.at + part.at, part.rank(layer.config)
    first_factor = Linear(at + part.left, layer.hidden, rank, kept=True)
    second_factor = Linear(at + part.right, rank, layer.hidden, kept=True)
    first, *others = attention.inputs
    inputs = (replace(first, linears=(*first.linears, first_factor)), *others, Input("laurel", (second_factor,)))
    return replace(attention, inputs=inputs, fed=())


def _altup(part: AltUp, layer: _LayerNames) -> tuple[tuple[Input, ...], tuple[Input, ...]]:
    """The inputs of the streams' coefficients, before the layer's parts and after them; llama.cpp keeps these too."""
    at, count = layer.at + part.at, part.count(layer.config)
    router = Linear(at + part.router, layer.hidden, count, kept=True)
    prediction = Linear(at + part.prediction, count, count * count, kept=True)
    correction = Linear(at + part.correction, count, count, kept=True)
    before = Input("altup.router", (router,)), Input("altup.prediction", (prediction,))
    return before, (Input("altup.correction", (correction,)),)


def _layer_inputs(part: LayerInputs, layer: _LayerNames) -> tuple[Input, ...]:
    """The gate reads hidden states without a norm, and its activation comes before the product: no folds."""
    width = part.width(layer.config)
    if not width:
        return ()
    gate = Linear(layer.at + part.gate, layer.hidden, width)
    out = Linear(layer.at + part.out, width, layer.hidden)
    return Input("layer_input", (gate,)), Input("layer_input.out", (out,))


def _mixture(part: Experts, layer: _LayerNames) -> _Part:
    count = int(given(layer.config, *part.count))
    readers = [Linear(layer.at + part.router, layer.hidden, count, kept=True)]
    experts = list(_experts(part, layer, count))
    after: list[Input] = []
    folds = [fold for expert in experts for fold in expert.folds]
    if part.shared and part.shared.inner(layer.config):
        always = _feed_forward(part.shared, layer, "feed", "shared.down")
        readers += always.inputs[0].linears
        if part.shared_gate:
            readers.append(Linear(layer.at + part.shared_gate, layer.hidden, 1, kept=True))
        after += always.inputs[1:]
        folds += always.folds
    key = "router" if part.beside else "feed"
    inputs = (
        Input(key, tuple(readers)),
        *(expert_input for expert in experts for expert_input in expert.inputs),
        *after,
    )
    of_experts = tuple(key for expert in experts for key in expert.fed)
    return _Part(inputs, tuple(folds), of_experts if part.beside else ("feed", *of_experts))


def _experts(part: Experts, layer: _LayerNames, count: int) -> Iterator[_Part]:
    stacked = part.stacked if part.stacked and (part.expert is None or _is_stacked(part.stacked, layer)) else None
    for expert in range(count):
        key, down_key = f"expert.{expert}", f"expert.{expert}.down"
        if stacked:
            yield _feed_forward(stacked, layer, key, down_key, expert, expert)
        elif part.expert:
            yield _feed_forward(part.expert, layer, key, down_key, expert)


def _is_stacked(part: FeedForward, layer: _LayerNames) -> bool:
    return layer.at + part.at + (part.fused or part.up) + part.form.weight in layer.names
