"""The feed-forward of a layer as an architecture describes it: one for all tokens, or experts that a router chooses."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.arithmetic import activation, sigmoid, softcapped, softmax, xielu
from quantkit.forward.arrays import Array, ascending, device, fetch, namespace, place, taken
from quantkit.forward.chunks import softplus
from quantkit.forward.config_keys import given
from quantkit.forward.description import Experts, FeedForward
from quantkit.forward.layer import Layer
from quantkit.forward.parts import Norm

_GATE_SLOPE = 1.702
_SCORES: dict[str, Callable[[Array], Array]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "sqrt_softplus": lambda x: softplus(x) ** 0.5,
}
_PLAIN = Norm()


def feed_forward(part: FeedForward, layer: Layer, x: Array, index: int = 0) -> Array:
    """x (n, hidden) through the feed-forward `part`, the `index`-th of those stacked in its tensors: (n, hidden)."""
    name = layer.at + part.at + part.down
    inner = layer.weights.once(f"{name}.{index}", lambda: _inner(part, layer, x, index))
    out = layer.weights.linear(name, inner, x.shape[1], part.down_form, index)
    return out * np.float32(part.multipliers(layer.config)[1]) if part.multipliers else out


def _inner(part: FeedForward, layer: Layer, x: Array, index: int) -> Array:
    """What the last linear of a feed-forward reads, (n, inner)."""
    config, inner = layer.config, part.inner(layer.config)

    def linear(name: str, x: Array, n_out: int) -> Array:
        return layer.weights.linear(layer.at + part.at + name, x, n_out, part.form, index)

    gate: Array | None = None
    if part.fused:
        both = linear(part.fused, x, 2 * inner)
        gate, up = (both[:, 0::2], both[:, 1::2]) if part.alternating else (both[:, :inner], both[:, inner:])
    else:
        gate = linear(part.gate, x, inner) if part.gate else None
        up = linear(part.up, x, inner)
    if gate is not None and part.clamped:
        xp, bound = namespace(x), float(config.get("swiglu_limit", 7.0))
        gate = xp.clip(gate, None, bound)
        up = (xp.clip(up, -bound, bound) + 1.0) * gate * sigmoid(_GATE_SLOPE * gate)
    elif gate is not None and part.situ:
        up = _situ(gate, up, *part.situ(config))
    else:
        act = _activation(part, layer)
        most = config.get(part.limit_before) if part.limit_before else None
        if gate is not None and most:
            gate, up = namespace(x).clip(gate, None, most), namespace(x).clip(up, -most, most)
        if gate is not None and part.multipliers:
            gate = gate * np.float32(part.multipliers(config)[0])
        if gate is not None and (sparsity := part.sparsity(config, layer.number)):
            gate = _beyond(gate, NormalDist().inv_cdf(sparsity))
        if gate is None:
            up = act(up)
        else:
            gate = act(gate)
            if limit := part.limit(config, layer.number):
                xp = namespace(gate)
                gate, up = xp.clip(gate, None, limit), xp.clip(up, -limit, limit)
            gate *= up
            up = gate
    return up


def _situ(gate: Array, up: Array, bound: float, bound_of_up: float) -> Array:
    """SiTU's product of gate and up (see `FeedForward`)."""
    gate = softcapped(gate, bound) * sigmoid(gate)
    gate *= softcapped(up, bound_of_up or None)
    return gate


def _activation(part: FeedForward, layer: Layer) -> Callable[[Array], Array]:
    if part.xielu is None:
        return activation(given(layer.config, *part.activation, default=part.default_activation))
    at = layer.at + part.at + part.xielu
    return xielu(*(float(layer.weights.vector(at + name)[0]) for name in ("alpha_p", "alpha_n", "beta", "eps")))


def _beyond(x: Array, deviations: float) -> Array:
    """What each value exceeds the mean of its row by, over that many standard deviations, or 0."""
    xp = namespace(x)
    x = x - x.mean(axis=-1, keepdims=True)
    cutoff = xp.sqrt(xp.einsum("ni,ni->n", x, x) / x.shape[1])[:, None] * deviations
    beyond: Array = xp.clip(x - cutoff, 0.0, None)
    return beyond


def mixture(part: Experts, layer: Layer, x: Array, routed: Array, tokens: Sequence[int]) -> Array:
    """x (n, hidden) through the experts that the router chooses for each token, and the shared one: (n, hidden).

    The router reads `routed` (n, hidden), and a table the ids `tokens`.
    """
    chosen, share = route(part, layer, routed, tokens)
    xp = namespace(x)
    read = to_experts(part, layer, x)
    out: Array = xp.zeros_like(read)
    for expert in range(expert_count(part, layer)):
        rows, slots = xp.where(chosen == expert)
        if not len(rows):
            continue
        one, index = expert_part(part, layer, expert)
        weights = share[rows, slots][:, None]
        if part.weighted_input:
            out[rows] += feed_forward(one, layer, read[rows] * weights, index)
        else:
            out[rows] += feed_forward(one, layer, read[rows], index) * weights
    out = from_experts(part, layer, out)
    from_shared = shared(part, layer, x)
    return out if from_shared is None else out + from_shared


def to_experts(part: Experts, layer: Layer, x: Array) -> Array:
    """What routed experts read: x (n, hidden), or its latent (n, width)."""
    width = latent_width(part, layer)
    return layer.weights.linear(f"{layer.at}{part.latent.down}", x, width) if part.latent and width else x


def from_experts(part: Experts, layer: Layer, summed: Array) -> Array:
    """The sum over the routed experts, from the latent to (n, hidden)."""
    if part.latent is None or not latent_width(part, layer):
        return summed
    if part.latent.has_norm(layer.config):
        summed = layer.norm(layer.at + part.latent.norm, summed, _PLAIN)
    return layer.weights.linear(layer.at + part.latent.up, summed, int(layer.config["hidden_size"]))


def latent_width(part: Experts, layer: Layer) -> int:
    """Elements of what routed experts read in place of the hidden states, or 0."""
    return part.latent.width(layer.config) if part.latent else 0


def shared(part: Experts, layer: Layer, x: Array) -> Array | None:
    """The output of the shared expert for x (n, hidden), or None without one."""
    if not part.shared or not part.shared.inner(layer.config):
        return None
    out = feed_forward(part.shared, layer, x)
    if part.shared_gate:
        out = out * sigmoid(layer.weights.linear(layer.at + part.shared_gate, x, 1))
    return out


def expert_count(part: Experts, layer: Layer) -> int:
    """Number of experts by config.json."""
    return int(given(layer.config, *part.count))


def expert_part(part: Experts, layer: Layer, expert: int) -> tuple[FeedForward, int]:
    """The feed-forward of one expert, and its index in stacked tensors (0 for separate ones)."""
    stacked = part.stacked
    if stacked and (part.expert is None or _is_stacked(stacked, layer)):
        return stacked, expert
    assert part.expert is not None
    return replace(part.expert, at=part.expert.at.format(expert)), 0


def _is_stacked(part: FeedForward, layer: Layer) -> bool:
    return layer.weights.has(layer.at + part.at + (part.fused or part.up) + part.form.weight)


def route(part: Experts, layer: Layer, x: Array, tokens: Sequence[int]) -> tuple[NDArray[np.int64], Array]:
    """The experts of each token of x (n, hidden), best first, and their weights: both (n, experts per token).

    A table has the experts of the ids `tokens` in its own order.
    """
    count = expert_count(part, layer)
    logits = layer.weights.linear(layer.at + part.router, x, count, part.router_form)
    if part.score == "sparse_mixer":
        return _sparse_mixer(logits, float(given(layer.config, "router_jitter_noise", default=0.01)))
    scores = _SCORES[part.score](logits)
    top = experts_used(part, layer)
    if part.table and layer.weights.has(layer.at + part.table):
        table = fetch(layer.weights.vector(layer.at + part.table)).reshape(-1, top)
        of_tokens: NDArray[np.int64] = place(table[np.asarray(tokens)].astype(np.int64), device(x))
        return of_tokens, _weights_of(part, layer, scores, of_tokens)
    ranked = scores
    if part.correction and layer.weights.has(layer.at + part.correction):
        ranked = scores + layer.vector(layer.at + part.correction, x)
    groups, top_groups = part.groups(layer.config)
    if groups > 1:
        by_group = ranked.reshape(len(x), groups, -1)
        group_scores = taken(by_group, ascending(-by_group)[..., : part.group_by]).sum(axis=-1)
        excluded = ascending(ascending(-group_scores)) >= top_groups
        ranked = namespace(x).where(excluded[..., None], -math.inf, by_group).reshape(len(x), count)
    chosen = ascending(-ranked)[:, :top]
    return chosen, _weights_of(part, layer, scores, chosen)


def experts_used(part: Experts, layer: Layer) -> int:
    """Experts per token."""
    stated = given(layer.config, *part.used, default=2)
    return int(stated[layer.number] if isinstance(stated, list) else stated)


def _weights_of(part: Experts, layer: Layer, scores: Array, chosen: NDArray[np.int64]) -> Array:
    """The weights of the chosen experts."""
    share = taken(scores, chosen)
    if part.normalised(layer.config):
        share = share / (share.sum(axis=-1, keepdims=True) + 1e-20)
    if part.expert_scale:
        share = share * layer.vector(layer.at + part.expert_scale, scores)[chosen]
    return share * part.scale(layer.config)


def _sparse_mixer(logits: Array, jitter: float) -> tuple[NDArray[np.int64], Array]:
    """The two best experts and their weights (n, 2) by SparseMixer-v2 (arXiv 2409.12136), as it is after training.

    The weight of the best expert is its share in a softmax over the experts with scores near its own: within 2
    `jitter`, relative to the larger magnitude. The weight of the second is the same among the others.
    """
    xp, numbers = namespace(logits), place(np.arange(logits.shape[1]), device(logits))
    chosen = ascending(-logits)[:, :2]
    candidates, shares = logits, []
    for column in range(2):
        best = chosen[:, column : column + 1]
        top = taken(logits, best)
        far = (top - logits) / xp.maximum(abs(logits), top) > 2 * jitter
        shares.append(taken(softmax(xp.where(far, -math.inf, candidates)), best))
        candidates = xp.where(numbers == best, -math.inf, candidates)
    weights: Array = xp.concatenate(shares, axis=1)
    return chosen, weights
