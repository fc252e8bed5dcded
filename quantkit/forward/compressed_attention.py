"""DeepSeek-V4's attention: nearby tokens, and compressed tokens before them (DeepSeek-V4, sections 2.3.1 and 2.3.2).

Heavily compressed attention makes one key of 128 tokens, and a query attends to all of them. Compressed sparse
attention makes one key of 4 tokens and the 4 before them, and index heads choose those that a query attends to. A
query attends only to windows that end at its token or before. llama.cpp: src/models/deepseek4.cpp.
"""

import numpy as np

from quantkit.forward.arithmetic import softmax, turn
from quantkit.forward.arrays import Array, ascending, device, empty, namespace, place
from quantkit.forward.attention import angles, query_steps, softmax_parts, window_mask
from quantkit.forward.config_keys import head_dim
from quantkit.forward.layer import Layer
from quantkit.forward.mixers import CompressedAttention
from quantkit.forward.parts import Norm

_NORM, _PLAIN_NORM = Norm(), Norm(weighted=False)
_Angles = tuple[Array, Array]


def compressed_attention(part: CompressedAttention, layer: Layer, x: Array) -> Array:
    """Attention over the hidden states x (n, hidden): (n, hidden)."""
    config, weights, at, n = layer.config, layer.weights, layer.at + part.at, len(x)
    groups, rank = part.group_count(config), part.group_rank(config)
    heads = weights.once(at + part.groups, lambda: _heads(part, layer, x))
    by_group = heads.reshape(n, groups, -1)
    # the linears of all groups are stacked in one matrix
    joined = [weights.linear(at + part.groups, by_group[:, group], rank, index=group) for group in range(groups)]
    return weights.linear(at + part.out, namespace(x).concatenate(joined, axis=1), x.shape[1])


def _heads(part: CompressedAttention, layer: Layer, x: Array) -> Array:
    """The outputs of all heads side by side, (n, heads * width)."""
    config, weights, at, n = layer.config, layer.weights, layer.at + part.at, len(x)
    heads, size = int(config["num_attention_heads"]), head_dim(config)
    turned_by = angles(part.rope(config, layer.number), part.rotary(config), x)

    short = layer.norm(at + part.query_norm, weights.linear(at + part.queries[0], x, part.rank(config)), _NORM)
    q = weights.linear(at + part.queries[1], short, heads * size).reshape(n, heads, size)
    q = _turned(layer.norm("", q, _PLAIN_NORM).swapaxes(0, 1), turned_by)
    keys = layer.norm(at + part.key_norm, weights.linear(at + part.keys, x, size), _NORM)
    keys = _turned(keys[None], turned_by)[0]

    ratio, far = part.ratio(config, layer.number), keys[:0]
    excluded: Array | None = None
    if ratio:
        far = _compressed(part, layer, part.compressor.at, size, x, turned_by)
        if part.overlap(config, layer.number):
            excluded = _excluded(part, layer, x, short, turned_by)

    xp, where = namespace(x), device(x)
    sinks = layer.vector(at + part.sinks, x)
    q = q * np.float32(size**-0.5)
    window = part.window(config) or n
    mixed = empty((heads, n, size), x)
    for start, stop in query_steps(n, n, where):
        first, rows = max(start + 1 - window, 0), stop - start
        ready = stop // ratio if ratio else 0
        both = xp.concatenate([keys[first:stop], far[:ready]])
        scores = q[:, start:stop] @ both.swapaxes(0, 1)
        masked = rows if window >= stop else stop - first
        near = stop - first
        scores[:, :, near - masked : near] += window_mask(rows, masked, window, where)
        if ready:
            hidden = place(_later(start, stop, ready, ratio), where)
            scores[:, :, near:] += hidden
            if excluded is not None:
                scores[:, :, near:][:, excluded[start:stop, :ready]] = -np.inf
        parts, total = softmax_parts(scores, sinks)
        mixed[:, start:stop] = parts @ both
        mixed[:, start:stop] /= total
    cos, sin = turned_by
    flat: Array = _turned(mixed, (cos, -sin)).swapaxes(0, 1).reshape(n, -1)
    return flat


def _turned(x: Array, turned_by: _Angles) -> Array:
    """x (heads, n, size) with the last values of a head rotated, neighbours in pairs."""
    still = x.shape[-1] - 2 * turned_by[0].shape[1]
    turned: Array = namespace(x).concatenate([x[..., :still], turn(x[..., still:], *turned_by, "neighbours")], axis=-1)
    return turned


def _compressed(part: CompressedAttention, layer: Layer, name: str, size: int, x: Array, turned_by: _Angles) -> Array:
    """The keys (windows, size) of the compressor `name` for x (n, hidden). A window that is not full has none."""
    config, weights, compressor = layer.config, layer.weights, part.compressor
    at, ratio, overlap = layer.at + part.at + name, part.ratio(config, layer.number), part.overlap(config, layer.number)
    channels = part.channels(config, layer.number, size)
    windows = len(x) // ratio
    values, gates = (
        weights.linear(at + linear, x, channels)[: windows * ratio].reshape(windows, ratio, channels)
        for linear in (compressor.values, compressor.weights)
    )
    gates = gates + layer.vector(at + compressor.positions, x).reshape(ratio, channels)
    if overlap:
        # the first half of the channels is for the window after
        values = _with_previous(values, size, 0.0)
        gates = _with_previous(gates, size, -np.inf)
    weighted = values * softmax(gates.swapaxes(1, 2)).swapaxes(1, 2)
    keys = layer.norm(at + compressor.norm, weighted.sum(axis=1), _NORM)
    cos, sin = (angle[: windows * ratio : ratio] for angle in turned_by)
    turned: Array = _turned(keys[None], (cos, sin))[0]
    return turned


def _with_previous(x: Array, size: int, before: float) -> Array:
    """Each window of x (windows, ratio, 2 size) after the one before it: (windows, 2 ratio, size)."""
    xp = namespace(x)
    first = xp.zeros_like(x[:1, :, :size]) + before
    previous = xp.concatenate([first, x[:-1, :, :size]])[: len(x)]
    both: Array = xp.concatenate([previous, x[:, :, size:]], axis=1)
    return both


def _later(start: int, stop: int, ready: int, ratio: int) -> Array:
    """(queries, windows): -inf for windows of `ratio` tokens that end after the query, else 0."""
    ended = (np.arange(start, stop) + 1) // ratio
    hidden: Array = np.where(np.arange(ready) >= ended[:, None], -np.inf, 0.0).astype(np.float32)
    return hidden


def _excluded(part: CompressedAttention, layer: Layer, x: Array, short: Array, turned_by: _Angles) -> Array | None:
    """Which compressed tokens a query does not attend to: bool (n, windows); None if all count.

    The score of a compressed token is the sum over index heads of weight * max(0, query . key).
    """
    config, weights, at, n = layer.config, layer.weights, layer.at + part.at + part.indexer, len(x)
    heads, size, top = part.index_heads(config), part.index_width(config), part.top(config)
    q = weights.linear(at + part.index_queries, short, heads * size).reshape(n, heads, size).swapaxes(0, 1)
    of_heads = weights.linear(at + part.index_weights, x, heads)
    keys = _compressed(part, layer, part.indexer + part.compressor.at, size, x, turned_by)
    if len(keys) <= top:
        return None
    xp, where, ratio = namespace(x), device(x), part.ratio(config, layer.number)
    q = _turned(q, turned_by)
    excluded: Array = place(np.ones((n, len(keys)), bool), where)
    for start, stop in query_steps(n, n, where):
        relations = xp.clip(q[:, start:stop] @ keys.swapaxes(0, 1), 0.0, None)
        scores = xp.einsum("rh,hrk->rk", of_heads[start:stop], relations)
        scores = scores + place(_later(start, stop, len(keys), ratio), where)
        excluded[start:stop] = ascending(ascending(-scores)) >= top
    return excluded
