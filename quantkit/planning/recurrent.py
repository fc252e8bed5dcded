"""The states of recurrent layers, and the graphs of Mamba and Mamba 2, as llama.cpp builds them (mamba-base.cpp)."""

from quantkit.planning.drawing import Drawing
from quantkit.planning.shape import Layer, ModelShape
from quantkit.planning.tensors import F32, Tensor, cache_of, fresh, matmul, same, view


def state_elements(shape: ModelShape) -> tuple[int, int]:
    """Float32 elements of a layer's states: the last inputs of its convolutions, and its heads' matrices."""
    if width := int(shape.number("kda.head_dim")):
        inner = width * shape.layers[0].n_head
        return 3 * (int(shape.number("ssm.conv_kernel")) - 1) * inner, width * inner
    state, inner = (int(shape.number(f"ssm.{key}")) for key in ("state_size", "inner_size"))
    channels = inner + 2 * state * int(shape.number("ssm.group_count"))
    return (int(shape.number("ssm.conv_kernel")) - 1) * channels, state * inner


def read_state(d: Drawing, state: Tensor, rows: Tensor) -> Tensor:
    """`rows`, what an operation reads from a state, between the operations that keep the states in order (build_rs).

    They clear no part of the state and copy none in the reserved graph, but decide where the reading runs.
    """
    part = view(state, state.shape)
    d.graph.expand(Tensor(part.shape, F32, (part, part), root=state))
    d.graph.expand(rows)
    other_states = fresh((state.shape[0], 0), state, d.other_copies)
    d.graph.expand(Tensor(other_states.shape, F32, (other_states, view(state, other_states.shape)), root=state))
    return rows


def copied(state: Tensor, x: Tensor) -> Tensor:
    """x written into a state (ggml_cpy): a view of the state."""
    return Tensor(x.shape, F32, (x, view(state, state.shape)), root=state)


def convolution_inputs(d: Drawing, mixed: Tensor, state: Tensor, last: Tensor, channels: int) -> Tensor:
    """The last inputs of a convolution and those of the batch, (kernel - 1 + n, channels); the state is renewed.

    `mixed` is a view of (channels, n) values, `state` the state of the convolution and `last` its rows.
    """
    before = int(d.shape.number("ssm.conv_kernel")) - 1
    turned = view(mixed, (d.n, channels), (mixed.stride[1],))
    turned.stride = (mixed.stride[1], F32, mixed.stride[1] * d.n, mixed.stride[1] * d.n)
    inputs = fresh((before + d.n, channels), view(last, (before, channels)), turned)
    d.graph.expand(copied(state, view(inputs, (before, channels), ((before + d.n) * F32,))))
    return inputs


def mamba(d: Drawing, x: Tensor, layer: Layer) -> Tensor:
    """Mamba of a layer, and its output projection."""
    shape, n = d.shape, d.n
    inner, width, rank = (int(shape.number(f"ssm.{key}")) for key in ("inner_size", "state_size", "time_step_rank"))
    of_convolution, of_channels = state_elements(shape)
    state = cache_of("convolution state", of_convolution, size=F32, layer=d.layer)
    last = read_state(d, state, fresh((of_convolution, 1), state, d.state_copies))
    projected = d.linear(layer, "ssm_in", x)
    row = projected.shape[0] * F32
    mixed, gate = (view(projected, (inner, n), (row,)) for _ in range(2))
    inputs = convolution_inputs(d, mixed, state, last, inner)
    values = fresh((inner, n), inputs)
    values.weight = d.named("ssm_conv1d.weight")
    values = same(same(values, weight=d.named("ssm_conv1d.bias")))

    selected = d.linear(layer, "ssm_x", values)
    row = selected.shape[0] * F32
    short = view(selected, (rank, n), (row,))
    keys, queries = (view(selected, (width, 1, n), (width * F32, row)) for _ in range(2))
    if layer.has("ssm_dt_norm.weight") or shape.keys.get("ssm.dt_b_c_rms"):
        short, keys, queries = (
            d.norm(part, name, layer.tensors)
            for part, name in ((short, "ssm_dt_norm"), (keys, "ssm_b_norm"), (queries, "ssm_c_norm"))
        )
    else:
        short = fresh(short.shape, short)
    steps = d.linear(layer, "ssm_dt", short)
    matrices = cache_of("matrices", of_channels, size=F32, layer=d.layer)
    by_channel = view(values, (1, inner, n), (F32, inner * F32))
    scanned = fresh((inner * n + of_channels,), matrices, by_channel, steps, keys, queries, d.state_copies)
    scanned.weight = d.named("ssm_a")
    read_state(d, matrices, scanned)
    d.graph.expand(copied(matrices, view(scanned, (of_channels,), (0,))))
    out = view(scanned, (inner, n))
    out = same(out, same(values, weight=d.named("ssm_d")))
    gated = fresh((inner, n), fresh((inner, n), gate), out)
    return d.linear(layer, "ssm_out", gated)


def mamba2(d: Drawing, x: Tensor, layer: Layer) -> Tensor:
    """Mamba 2 of a layer, and its output projection."""
    shape, n = d.shape, d.n
    inner, heads, groups, width = (
        int(shape.number(f"ssm.{key}")) for key in ("inner_size", "time_step_rank", "group_count", "state_size")
    )
    channels = inner + 2 * width * groups
    of_convolution, of_heads = state_elements(shape)
    state = cache_of("convolution state", of_convolution, size=F32, layer=d.layer)
    last = read_state(d, state, fresh((of_convolution, 1), state, d.state_copies))
    projected = d.linear(layer, "ssm_in", x)
    row = projected.shape[0] * F32
    gate = view(projected, (inner // heads, heads, n), (inner // heads * F32, row))
    steps = view(projected, (heads, n), (row,))
    inputs = convolution_inputs(d, view(projected, (channels, n), (row,)), state, last, channels)
    mixed = fresh((channels, n), inputs)
    mixed.weight = d.named("ssm_conv1d.weight")
    mixed = same(same(mixed, weight=d.named("ssm_conv1d.bias")))

    values = view(mixed, (inner // heads, heads, n), (inner // heads * F32, channels * F32))
    keys, queries = (view(mixed, (width, groups, n), (width * F32, channels * F32)) for _ in range(2))
    steps = same(fresh((heads, n), steps), weight=d.named("ssm_dt.bias"))
    matrices = cache_of("matrices", of_heads, size=F32, layer=d.layer)
    scanned = fresh((inner * n + of_heads,), matrices, values, steps, keys, queries, d.state_copies)
    scanned.weight = d.named("ssm_a")
    read_state(d, matrices, scanned)
    d.graph.expand(copied(matrices, view(scanned, (of_heads,), (0,))))
    out = view(scanned, (inner // heads, heads, n))
    out = same(out, same(values, weight=d.named("ssm_d")))
    gated = fresh(out.shape, fresh(gate.shape, gate), out)
    if layer.has("ssm_norm.weight"):
        gated = d.norm(view(gated, (inner // groups, groups, n)), "ssm_norm", layer.tensors)
    return matmul(d.named("ssm_out.weight"), layer.rows("ssm_out"), view(gated, (inner, n)))
