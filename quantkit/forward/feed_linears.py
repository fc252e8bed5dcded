"""The linears of a layer's feed-forward: dense, a mixture of experts, or RWKV's channel mix."""

from collections.abc import Iterator
from dataclasses import replace

from quantkit.forward.config_keys import given
from quantkit.forward.description import Experts, FeedForward
from quantkit.forward.layer_parts import LayerNames, Part, rows
from quantkit.forward.linears import AFTER_EXPERTS, Input, Linear, NormFold, RowFold
from quantkit.forward.recurrent_mixers import ChannelMix


def feed_forward(
    part: FeedForward, layer: LayerNames, key: str, down_key: str, expert: int | None = None, index: int | None = None
) -> Part:
    """The linears of one feed-forward; inputs have the keys `key` and `down_key`.

    `expert`: the expert's number, which `part.at` may have a place for; `index`: its index in stacked tensors.
    """
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
    is_linear = (part.fused or part.gate) and not (part.clamped or part.limit_before or part.situ)
    folds = (RowFold(readers[-1], _rows_of_up(part, inner), down_key),) if is_linear else ()
    return Part(inputs, folds, (key,))


def _rows_of_up(part: FeedForward, inner: int) -> tuple[int, ...]:
    if not part.fused:
        return rows(0, inner, 1)
    return rows(1, 2 * inner, 2) if part.alternating else rows(inner, 2 * inner, 1)


def channel_mix(part: ChannelMix, layer: LayerNames) -> Part:
    """The two linears of the channel mix, and the receptance if it has one."""
    at, hidden, inner = layer.at + part.at, layer.hidden, part.inner(layer.config)
    inputs = [
        Input("feed", (Linear(at + part.key, hidden, inner),)),
        Input("feed.down", (Linear(at + part.value, inner, hidden),)),
    ]
    if part.receptance:
        inputs.append(Input("feed.receptance", (Linear(at + part.receptance[0], hidden, hidden),)))
    return Part(tuple(inputs), (), ())


def mixture(part: Experts, layer: LayerNames) -> Part:
    """The router, each expert, and the shared expert with its gate."""
    count = int(given(layer.config, *part.count))
    readers = [Linear(layer.at + part.router, layer.hidden, count, part.router_form, kept=True)]
    latent = part.latent.width(layer.config) if part.latent else 0
    within = replace(layer, config={**layer.config, "hidden_size": latent}) if latent else layer
    experts = list(_experts(part, within, count))
    after: list[Input] = []
    folds = [fold for expert in experts for fold in expert.folds]
    if part.shared and part.shared.inner(layer.config):
        always = feed_forward(part.shared, layer, "feed", "shared.down")
        readers += always.inputs[0].linears
        if part.shared_gate:
            readers.append(Linear(layer.at + part.shared_gate, layer.hidden, 1, kept=True))
        after += always.inputs[1:]
        folds += always.folds
    if part.latent and latent:
        readers.append(Linear(layer.at + part.latent.down, layer.hidden, latent))
        after.insert(0, Input(AFTER_EXPERTS, (Linear(layer.at + part.latent.up, latent, layer.hidden),)))
        if part.latent.has_norm(layer.config):
            folds.append(NormFold(layer.at + part.latent.norm, 0.0, (AFTER_EXPERTS,)))
    apart = part.beside or part.early
    key = "router" if apart else "feed"
    inputs = (
        Input(key, tuple(readers)),
        *(expert_input for expert in experts for expert_input in expert.inputs),
        *after,
    )
    of_experts = () if latent else tuple(key for expert in experts for key in expert.fed)
    return Part(inputs, tuple(folds), of_experts if apart else ("feed", *of_experts))


def _experts(part: Experts, layer: LayerNames, count: int) -> Iterator[Part]:
    stacked = part.stacked if part.stacked and (part.expert is None or _is_stacked(part.stacked, layer)) else None
    for expert in range(count):
        key, down_key = f"expert.{expert}", f"expert.{expert}.down"
        if stacked:
            yield feed_forward(stacked, layer, key, down_key, expert, expert)
        elif part.expert:
            yield feed_forward(part.expert, layer, key, down_key, expert)


def _is_stacked(part: FeedForward, layer: LayerNames) -> bool:
    return layer.at + part.at + (part.fused or part.up) + part.form.weight in layer.names
