"""The graphs of RWKV 6 and 7, as llama.cpp builds them (src/models/rwkv6.cpp, rwkv7.cpp and their bases).

A layer has two states: its last inputs of time mixing and of channel mixing, and a matrix for each head.
"""

from quantkit.planning.drawing import Drawing
from quantkit.planning.recurrent import copied, read_state
from quantkit.planning.shape import Layer, ModelShape
from quantkit.planning.tensors import F32, Tensor, cache_of, fresh, same, view

_SHIFTED = 2


def rwkv_states(shape: ModelShape) -> tuple[int, int]:
    """Float32 elements of a layer's states: its last inputs, and its heads' matrices."""
    return _SHIFTED * shape.n_embd, shape.n_embd * _head(shape)


def rwkv_layer(d: Drawing, x: Tensor, layer: Layer, number: int, first_values: list[Tensor]) -> Tensor:
    """A whole layer. `first_values` is empty before the first layer, which leaves its values there for RWKV 7."""
    shape, n, width = d.shape, d.n, d.shape.n_embd
    of_inputs, _ = rwkv_states(shape)
    state = cache_of("token shift", of_inputs, size=F32, layer=d.layer)
    last = read_state(d, state, fresh((of_inputs, 1), state, d.state_copies))
    normed = d.norm(view(x, (width, n)), "attn_norm", layer.tensors)
    mix = _time_mix_7 if layer.has("time_mix_r_k.weight") else _time_mix_6
    before = fresh((width, n), view(last, (width, 1)), view(normed, (width, n - 1)))
    mixed = mix(d, normed, before, layer, first_values)
    # both stand in three dimensions there, so the sum takes the place of neither
    middle = same(view(mixed, (width, n)), view(x, (width, n)))
    fed = d.norm(middle, "attn_norm_2", layer.tensors)
    before = fresh((width, n), view(last, (width, 1)), view(fed, (width, n - 1)))
    inputs = fresh((width, _SHIFTED), view(normed, (width, 1)), view(fed, (width, 1)))
    d.graph.expand(copied(state, view(inputs, (of_inputs,))))
    middle, fed, before = (view(part, (width, n)) for part in (middle, fed, before))
    if number == len(shape.trunk) - 1:
        middle, fed, before = (fresh((width, n), part, d.outputs) for part in (middle, fed, before))
    out = same(_channel_mix(d, fed, before, layer), middle)
    every = int(shape.number("rescale_every_n_layers"))
    return same(out) if every and (number + 1) % every == 0 else out


def _head(shape: ModelShape) -> int:
    return int(shape.number("wkv.head_size"))


def _channel_mix(d: Drawing, x: Tensor, before: Tensor, layer: Layer) -> Tensor:
    change = same(before, x)
    keys = same(same(change, weight=d.named("channel_mix_lerp_k.weight")), x)
    receptance: Tensor | None = None
    if layer.has("channel_mix_receptance.weight"):
        receptance = same(same(change, weight=d.named("channel_mix_lerp_r.weight")), x)
        receptance = same(d.linear(layer, "channel_mix_receptance", receptance))
    out = d.linear(layer, "channel_mix_value", same(same(d.linear(layer, "channel_mix_key", keys))))
    return out if receptance is None else same(receptance, out)


def _time_mix_6(d: Drawing, x: Tensor, before: Tensor, layer: Layer, _first: list[Tensor]) -> Tensor:
    n, width = d.n, d.shape.n_embd
    change, x = view(same(before, x), (width, n)), view(x, (width, n))
    mixed = same(same(change, weight=d.named("time_mix_lerp_x.weight")), x)
    short = same(d.linear(layer, "time_mix_w1", mixed))
    rank = short.shape[0] // 5
    short = fresh((rank, 1, n, 5), view(short, (rank, 1, 5, n)))
    mixed = Tensor((width, 1, n, 5), F32, (short,))
    mixed.weight = d.named("time_mix_w2.weight")
    change, x = (view(part, (width, 1, n)) for part in (change, x))
    mixed = same(mixed, weight=d.named("time_mix_lerp_fused.weight"))
    mixed = same(same(mixed, change), x)
    receptances, keys, values = (
        d.linear(layer, f"time_mix_{name}", view(mixed, (width, n))) for name in ("receptance", "key", "value")
    )
    gate = same(d.linear(layer, "time_mix_gate", view(mixed, (width, n))))
    head = _head(d.shape)
    heads = (head, width // head, n)
    keys, values, receptances = (view(part, heads) for part in (keys, values, receptances))
    decays = d.linear(layer, "time_mix_decay_w2", same(d.linear(layer, "time_mix_decay_w1", view(mixed, (width, n)))))
    decays = view(same(same(same(same(decays, weight=d.named("time_mix_decay.weight"))))), heads)
    out = _with_states(d, keys, values, receptances, decays)
    return d.linear(layer, "time_mix_output", same(_normed(d, out), gate))


def _time_mix_7(d: Drawing, x: Tensor, before: Tensor, layer: Layer, first: list[Tensor]) -> Tensor:
    n, width = d.n, d.shape.n_embd
    change = fresh((width, n, 1, 6), same(before, x))
    mixed = same(same(change, weight=d.named("time_mix_lerp_fused.weight")), x)

    def linear(name: str) -> Tensor:
        return d.linear(layer, f"time_mix_{name}", view(mixed, (width, n)))

    def low_rank(name: str, *, through: bool = False, added: bool = True) -> Tensor:
        short = linear(f"{name}1")
        long = d.linear(layer, f"time_mix_{name}2", same(short) if through else short)
        return same(long, weight=d.named(f"time_mix_{name}0.weight")) if added else long

    receptances = linear("receptance")
    decays = same(same(same(low_rank("w", through=True))))
    keys, values = linear("key"), linear("value")
    if first:
        values = same(values, same(same(first[0], values), same(low_rank("v"))))
    else:
        first.append(values)
    gate = low_rank("g", through=True, added=False)
    rates = same(low_rank("a"))
    head = _head(d.shape)
    heads = (head, width // head, n)
    removed = fresh(heads, view(same(keys, weight=d.named("time_mix_k_k.weight")), heads))
    scaled = same(keys, weight=d.named("time_mix_k_a.weight"))
    keys = same(keys, same(same(rates, scaled), scaled))
    receptances, decays, keys, values, rates = (
        view(part, heads) for part in (receptances, decays, keys, values, rates)
    )
    out = _normed(d, _with_states(d, receptances, decays, keys, values, same(removed), same(removed, rates)))
    own = same(same(keys, receptances), weight=d.named("time_mix_r_k.weight"))
    given = same(values, fresh((1, width // head, n), own))
    out = same(same(out, view(given, (width, n))), gate)
    return d.linear(layer, "time_mix_output", out)


def _with_states(d: Drawing, *inputs: Tensor) -> Tensor:
    """The output of the heads (hidden * n), after their matrices were read and renewed."""
    width, n, head = d.shape.n_embd, d.n, _head(d.shape)
    _, elements = rwkv_states(d.shape)
    matrices = cache_of("matrices", elements, size=F32, layer=d.layer)
    state = read_state(d, matrices, fresh((elements, 1), matrices, d.state_copies))
    out = fresh((width, n + head), *inputs, state)
    d.graph.expand(copied(matrices, view(out, (elements,), (0,))))
    return view(out, (width * n,))


def _normed(d: Drawing, out: Tensor) -> Tensor:
    """Each head's output after its norm, (hidden, n)."""
    width, n, head = d.shape.n_embd, d.n, _head(d.shape)
    normed = same(view(out, (head, width // head, n)), inplace=False)
    weighted = same(view(normed, (width, n)), weight=d.named("time_mix_ln.weight"))
    return same(weighted, weight=d.named("time_mix_ln.bias"))
