"""The linears of what mixes tokens in a layer: attention, recurrences, a short convolution."""

from dataclasses import replace

from quantkit.forward import mamba2
from quantkit.forward.config_keys import given, head_dim
from quantkit.forward.delta_net import sizes_of
from quantkit.forward.description import Architecture, Laurel
from quantkit.forward.kimi_parts import KimiDelta
from quantkit.forward.layer_parts import NO_PART, LayerNames, Part, rows, rows_of_heads, side_by_side
from quantkit.forward.linears import Input, Linear, NormFold, RowFold
from quantkit.forward.mixers import Attention, BlockIndexer, CompressedAttention, Indexer
from quantkit.forward.recurrent_mixers import DeltaNet, Mamba, Mamba2, ShortConvolution, TimeMix
from quantkit.forward.time_mix import BARE, low_rank_names


def mixer_linears(architecture: Architecture, layer: LayerNames) -> Part:
    """The linears of the layer's mixer; a layer may have none."""
    config, number = layer.config, layer.number
    recurrent = architecture.delta_net
    if not architecture.mixes(config, number):
        attention = NO_PART
    elif architecture.compressed:
        attention = _compressed(architecture.compressed, layer)
    elif architecture.time_mix:
        attention = _time_mix(architecture.time_mix, layer)
    elif recurrent and recurrent.layers(config, number):
        attention = _delta_net(recurrent, layer)
    elif (by_channel := architecture.kimi_delta) and by_channel.layers(config, number):
        attention = _kimi_delta(by_channel, layer)
    elif (selective := architecture.mamba) and selective.layers(config, number):
        attention = _mamba(selective, layer)
    elif (state_space := architecture.mamba2) and state_space.layers(config, number):
        attention = _mamba2(state_space, layer)
        if state_space.beside:
            attention = side_by_side(_attention(architecture.attention, layer), attention)
    elif (convolution := architecture.short_convolution) and convolution.layers(config, number):
        attention = _short_convolution(convolution, layer)
    elif (only := architecture.one_linear) and only.layers(config, number):
        linear = Linear(layer.at + only.at + only.linear, layer.hidden, layer.hidden)
        attention = Part((Input("attention", (linear,)),), (), ("attention",))
    else:
        attention = _attention(architecture.attention, layer)
    if architecture.laurel:
        return _with_laurel(architecture.laurel, layer, attention)
    return attention


def _attention(part: Attention, layer: LayerNames) -> Part:
    return _latent(part, layer) if part.latent else _plain(part, layer)


def _plain(part: Attention, layer: LayerNames) -> Part:
    config, at = layer.config, layer.at + part.at
    heads, kv_heads = int(given(config, "num_attention_heads", "n_head", "n_heads")), part.kv_heads(config)
    size, value = head_dim(config), part.value_width(config)
    shared_by = heads // kv_heads
    readers: tuple[Linear, ...]
    first, step = 0, value  # first row of the values, and rows from one key head to the next
    own_values = not part.keys_as_values(config, layer.number)
    shares = part.shared_from(config, layer.number) is not None
    if part.fused is None:
        widths = [(2 * heads if part.gated else heads) * size, kv_heads * size, kv_heads * value]
        if shares or not own_values:
            widths = widths[: 1 if shares else 2]
        readers = tuple(
            Linear(at + name, layer.hidden, width, part.form)
            for name, width in zip(part.separate, widths, strict=False)
        )
    else:
        readers = (Linear(at + part.fused, layer.hidden, (heads + 2 * kv_heads) * size, part.form),)
        first, step = (heads + kv_heads) * size, size
        if part.grouped:
            first, step = (shared_by + 1) * size, (shared_by + 2) * size
    value_rows = rows_of_heads(first, step, heads, shared_by, value)
    out = Linear(at + part.out, heads * value, layer.hidden, part.form)
    # a gate with one row for each head saves nothing, and few loaders take such a shape
    per_head = part.gate_per_head(config)
    width = part.gate_width(config, heads)
    gates = (Linear(at + part.gate, layer.hidden, width, part.form, kept=per_head),) if part.gate else ()
    choosers = _block_indexer(part.blocks, layer, at)
    inputs = (Input("attention", readers + gates + choosers), Input("attention.out", (out,)))
    clipped = part.clip is not None and config.get(part.clip) is not None
    foldable = own_values and not shares and not clipped and part.value_norm is None
    folds = (RowFold(readers[-1], value_rows, "attention.out"),) if foldable else ()
    return Part(inputs, folds, ("attention",))


def _latent(part: Attention, layer: LayerNames) -> Part:
    config, at, hidden = layer.config, layer.at + part.at, layer.hidden
    heads, rank = int(config["num_attention_heads"]), int(config["kv_lora_rank"])
    nope, rope, value = (int(config[f"{key}_head_dim"]) for key in ("qk_nope", "qk_rope", "v"))
    n_queries, short = heads * (nope + rope), int(config.get("q_lora_rank") or 0)

    joint = Linear(at + "kv_a_proj_with_mqa", hidden, rank + rope)
    kv = Linear(at + "kv_b_proj", rank, heads * (nope + value))
    out = Linear(at + part.out, heads * value, hidden, part.form)
    first = Linear(at + "q_a_proj", hidden, short) if short else Linear(at + "q_proj", hidden, n_queries)
    readers, of_queries = _indexer(part.indexer, layer, at, short)
    if part.gate:
        per_head = part.gate_per_head(config)
        readers += (Linear(at + part.gate, hidden, part.gate_width(config, heads), part.form, kept=per_head),)
    inputs = [Input("attention", (first, joint, *readers))]
    norms = []
    if short:
        inputs.append(Input("attention.q", (Linear(at + "q_b_proj", short, n_queries), *of_queries)))
        norms.append(NormFold(at + "q_a_layernorm", part.norm.offset, ("attention.q",)))
    inputs += [Input("attention.kv", (kv,)), Input("attention.out", (out,))]
    norms.append(NormFold(at + "kv_a_layernorm", part.norm.offset, ("attention.kv",)))
    value_rows = tuple(head * (nope + value) + nope + i for head in range(heads) for i in range(value))
    return Part(tuple(inputs), (*norms, RowFold(kv, value_rows, "attention.out")), ("attention",))


def _indexer(
    part: Indexer | None, layer: LayerNames, at: str, rank: int
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


def _block_indexer(part: BlockIndexer | None, layer: LayerNames, at: str) -> tuple[Linear, ...]:
    """The linears that choose blocks of keys; they keep their precision as those of an indexer do."""
    config = layer.config
    if part is None or not part.layers(config, layer.number):
        return ()
    widths = (part.heads(config) * part.width(config), part.width(config))
    names = (part.queries, part.keys)
    return tuple(Linear(at + name, layer.hidden, width, kept=True) for name, width in zip(names, widths, strict=True))


def _compressed(part: CompressedAttention, layer: LayerNames) -> Part:
    """The compressor and the index heads are small and decide what is seen at all, so they keep their precision.

    The norm of the queries and the softmax are after all linears but the last two, whose inputs take no fold.
    """
    config, at, hidden = layer.config, layer.at + part.at, layer.hidden
    heads, size, rank = int(config["num_attention_heads"]), head_dim(config), part.rank(config)
    groups, group_rank = part.group_count(config), part.group_rank(config)
    readers = [Linear(at + part.queries[0], hidden, rank), Linear(at + part.keys, hidden, size)]
    of_queries = [Linear(at + part.queries[1], rank, heads * size)]
    compressors = {part.compressor.at: size} if part.ratio(config, layer.number) else {}
    if compressors and part.overlap(config, layer.number):
        index_heads, width = part.index_heads(config), part.index_width(config)
        compressors[part.indexer + part.compressor.at] = width
        readers.append(Linear(at + part.indexer + part.index_weights, hidden, index_heads, kept=True))
        of_queries.append(Linear(at + part.indexer + part.index_queries, rank, index_heads * width, kept=True))
    for name, width in compressors.items():
        channels = part.channels(config, layer.number, width)
        for linear in (part.compressor.values, part.compressor.weights):
            readers.append(Linear(at + name + linear, hidden, channels, kept=True))
    of_groups = (
        Input(f"attention.group.{group}", (Linear(at + part.groups, heads * size // groups, group_rank, index=group),))
        for group in range(groups)
    )
    out = Input("attention.out", (Linear(at + part.out, groups * group_rank, hidden),))
    inputs = (Input("attention", tuple(readers)), Input("attention.q", tuple(of_queries)), *of_groups, out)
    return Part(inputs, (NormFold(at + part.query_norm, 0.0, ("attention.q",)),), ("attention",))


def _delta_net(part: DeltaNet, layer: LayerNames) -> Part:
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
    return Part((Input("attention", readers), Input("attention.out", (out,))), (), ("attention",))


def _kimi_delta(part: KimiDelta, layer: LayerNames) -> Part:
    at, hidden = layer.at + part.at, layer.hidden
    heads, width = part.heads(layer.config), part.width(layer.config)
    inner = heads * width
    # beta is small; so is what decays and gates where it passes two linears
    first, *more = _through(at, part.forget, hidden, width, inner)
    gate, *more_of_gate = _through(at, part.gate, hidden, width, inner)
    beta = Linear(at + part.beta, hidden, heads, kept=True)
    readers = (*(Linear(at + name, hidden, inner) for name in part.separate), first, beta, gate)
    inputs = [Input("attention", readers)]
    inputs += [Input("attention.decay", (linear,)) for linear in more]
    inputs += [Input("attention.gate", (linear,)) for linear in more_of_gate]
    inputs.append(Input("attention.out", (Linear(at + part.out, inner, hidden),)))
    # what enters the last linear was normed and gated, so no row before it is linear in it
    return Part(tuple(inputs), (), ("attention",))


def _through(at: str, names: tuple[str, ...], hidden: int, width: int, inner: int) -> list[Linear]:
    """One linear from the hidden states to `inner` elements, or two small ones with `width` elements between them."""
    if len(names) == 1:
        return [Linear(at + names[0], hidden, inner)]
    return [Linear(at + names[0], hidden, width, kept=True), Linear(at + names[1], width, inner, kept=True)]


def _mamba(part: Mamba, layer: LayerNames) -> Part:
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
    return Part(inputs, (), ("attention",))


def _mamba2(part: Mamba2, layer: LayerNames) -> Part:
    at, sizes = layer.at + part.at, mamba2.sizes_of(part, layer.config)
    projection = Linear(at + part.projection, layer.hidden, sizes.projected)
    out = Linear(at + part.out, sizes.inner, layer.hidden)
    key = "mamba.out" if part.beside else "attention.out"
    inputs = (Input("attention", (projection,)), Input(key, (out,)))
    # without the norm the output is gated, and no row before it is linear in it
    folds = (NormFold(at + part.norm, 0.0, (key,)),) if part.has_norm(layer.config) else ()
    return Part(inputs, folds, ("attention",))


def _time_mix(part: TimeMix, layer: LayerNames) -> Part:
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
    return Part(tuple(inputs), (), ())


def _short_convolution(part: ShortConvolution, layer: LayerNames) -> Part:
    at, hidden = layer.at + part.at, layer.hidden
    projection = Linear(at + part.projection, hidden, 3 * hidden)
    out = Linear(at + part.out, hidden, hidden)
    inputs = (Input("attention", (projection,)), Input("attention.out", (out,)))
    # the second gate is a factor of the last linear's input
    return Part(inputs, (RowFold(projection, rows(hidden, 2 * hidden, 1), "attention.out"),), ("attention",))


def _with_laurel(part: Laurel, layer: LayerNames, attention: Part) -> Part:
    """Attention and the low-rank residual, whose linears are small: llama.cpp keeps them as they are.

    The residual also adds the normed hidden states, so no scale can be folded into that norm.
    """
    at, rank = layer.at + part.at, part.rank(layer.config)
    first_factor = Linear(at + part.left, layer.hidden, rank, kept=True)
    second_factor = Linear(at + part.right, rank, layer.hidden, kept=True)
    first, *others = attention.inputs
    inputs = (replace(first, linears=(*first.linears, first_factor)), *others, Input("laurel", (second_factor,)))
    return replace(attention, inputs=inputs, fed=())
