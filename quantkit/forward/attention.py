"""Self-attention of any described architecture."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.arithmetic import alibi_slopes, normalise, sigmoid, turn
from quantkit.forward.arrays import Array, device, empty, namespace, place, put_where
from quantkit.forward.chunks import softplus
from quantkit.forward.config_keys import Config, given, head_dim
from quantkit.forward.indexer import excluded_blocks, excluded_keys
from quantkit.forward.layer import Context, Layer
from quantkit.forward.mixers import Attention, Indexer
from quantkit.forward.rope import rope_frequencies

# DeepSeek's norms within attention do not take config.json's epsilon.
_LATENT_EPS = 1e-6
# Queries per softmax step. Small steps compute few masked scores and stay in the CPU's cache; a GPU needs large steps.
_ROWS, _ROWS_OF_TENSORS = 64, 512


def attend(part: Attention, layer: Layer, x: Array, context: Context) -> Array:
    """Attention over the hidden states x (n, hidden): (n, hidden)."""
    name = layer.at + part.at + part.out
    heads = layer.weights.once(name, lambda: _heads(part, layer, x, context))
    out = layer.weights.linear(name, heads, x.shape[1], part.form)
    return out * np.float32(part.multipliers(layer.config)[3]) if part.multipliers else out


def _heads(part: Attention, layer: Layer, x: Array, context: Context) -> Array:
    """The outputs of all heads side by side, (n, heads * width)."""
    gate: Array | None = None
    excluded: Array | None = None
    apart: NDArray[np.bool_] | None = None
    if part.latent:
        q, k, v, short = _latent(part, layer, x)
        gate = _gate(part, layer, x, len(q)) if part.gate else None
        if part.indexer and part.indexer.layers(layer.config, layer.number):
            excluded = _excluded(part.indexer, part, layer, x, short, context)
    else:
        q, k, v, gate = _plain(part, layer, x, context)
        if part.blocks and part.blocks.layers(layer.config, layer.number):
            turned_by = angles(layer.config, part.rotary(layer.config), x)
            apart = excluded_blocks(part.blocks, layer, layer.at + part.at, x, part.norm, turned_by)
    (heads, n, size), groups, where = q.shape, len(k), device(x)
    cap = layer.config.get(part.softcap) if part.softcap else None
    scale = part.scale(layer.config, layer.number) / (cap or 1.0)
    late = part.late_queries(layer.config, layer.number)
    if late is not None:
        beta, length, position = late
        factors = 1.0 + beta * np.log1p(np.arange(position, position + n) // length)
        q = q * place(factors.astype(np.float32)[:, None], where)
    q = q.reshape(groups, heads // groups, n, size)
    slopes = place(alibi_slopes(heads), where) if part.alibi(layer.config) else None
    has_sinks = part.sinks and layer.weights.has(layer.at + part.at + part.sinks)
    sinks = layer.vector(f"{layer.at}{part.at}{part.sinks}", x) if has_sinks else None
    window, chunk = part.window(layer.config, layer.number) or n, part.chunk(layer.config, layer.number) or n

    out = empty((n, heads, v.shape[-1]), x)
    for start, stop in query_steps(n, chunk, where):
        first, rows = max(start - start % chunk, start + 1 - window), stop - start
        last = stop
        if not part.causal:
            first, last = 0, n
        # heads that share a key are stacked into one matrix
        queries: Array = namespace(x).multiply(q[:, :, start:stop], scale)
        scores = queries.reshape(groups, -1, size) @ k[:, first:last].swapaxes(1, 2)
        if cap:
            scores = namespace(x).tanh(scores, out=scores)
            scores *= cap
        by_head = scores.reshape(heads, rows, last - first)
        if slopes is not None:
            distance = np.abs(_distance(start, stop, first, last)).astype(np.float32)
            by_head -= slopes[:, None, None] * place(distance, where)
        if part.causal:
            masked = rows if window >= stop else stop - first
            by_head[:, :, stop - first - masked :] += window_mask(rows, masked, window, where)
        elif window < n:
            far = np.abs(_distance(start, stop, first, last)) > window // 2
            by_head += place(np.where(far, -np.inf, 0.0).astype(np.float32), where)
        if excluded is not None:
            by_head[:, excluded[start:stop, first:last]] = -np.inf
        if apart is not None:
            # a choice for each group of heads that share a key
            by_group = by_head.reshape(groups, heads // groups, rows, last - first)
            put_where(by_group, apart[:, None, start:stop, first:last], -np.inf)
        parts, total = softmax_parts(by_head, sinks)
        mixed = (parts.reshape(scores.shape) @ v[:, first:last]).reshape(heads, rows, -1)
        mixed /= total  # fewer divisions than on the scores
        out[start:stop] = mixed.swapaxes(0, 1)
    if gate is not None:
        out *= softplus(gate) if part.gate_function == "softplus" else sigmoid(gate)
    flat: Array = out.reshape(n, -1)
    return flat


def query_steps(n: int, chunk: int, where: Any) -> Iterator[tuple[int, int]]:
    """The ranges of n queries for one softmax each, on the device `where`; none crosses the end of a chunk."""
    step = _ROWS if where is None else _ROWS_OF_TENSORS
    for first in range(0, n, chunk):
        end = min(first + chunk, n)
        yield from ((start, min(start + step, end)) for start in range(first, end, step))


def softmax_parts(scores: Array, sinks: Array | None) -> tuple[Array, Array]:
    """The softmax of scores (heads, rows, keys), in place, before the division by its sums (heads, rows, 1).

    A head's sink only enters the sum.
    """
    xp = namespace(scores)
    top = xp.amax(scores, axis=-1, keepdims=True)
    if sinks is not None:
        top = xp.maximum(top, sinks[:, None, None])
    scores -= top
    parts: Array = xp.exp(scores, out=scores)
    total = parts.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total += xp.exp(sinks[:, None, None] - top)
    return parts, total


def _distance(start: int, stop: int, first: int, last: int) -> NDArray[np.int64]:
    """Distance in tokens from keys `first` to `last` to queries `start` to `stop`: (queries, keys)."""
    return np.arange(start, stop)[:, None] - np.arange(first, last)


@lru_cache(maxsize=8)
def window_mask(rows: int, keys: int, window: int, where: Any) -> Array:
    """The mask of the scores: -inf for keys after the query, or `window` or more tokens before it."""
    distance = _distance(keys - rows, keys, 0, keys)
    hidden = np.where((distance < 0) | (distance >= window), -np.inf, 0.0).astype(np.float32)
    mask: Array = place(hidden, where)
    return mask


def _plain(part: Attention, layer: Layer, x: Array, context: Context) -> tuple[Array, Array, Array, Array | None]:
    """Queries, keys and values (heads, n, head_dim), after norms and rope; the gate (n, heads, head_dim or 1)."""
    source = part.shared_from(layer.config, layer.number)
    if source is not None:
        q = layer.weights.linear(layer.at + part.at + part.separate[0], x, _query_width(layer.config), part.form)
        q = q.reshape(len(x), -1, head_dim(layer.config))
        if part.norms:
            q = _normed(part, layer, part.norms[0], q)
        return _turned(part, layer, q.swapaxes(0, 1)), *context.shared[source], None
    heads, kv_heads = int(given(layer.config, "num_attention_heads", "n_head", "n_heads")), part.kv_heads(layer.config)
    size = head_dim(layer.config)
    q, k, v = _projected(part, layer, x, heads, kv_heads, size)
    if part.multipliers:
        factors = part.multipliers(layer.config)
        q, k, v = (states * np.float32(factor) for states, factor in zip((q, k, v), factors, strict=False))
    gate: Array | None = None
    if part.gated:
        q, gate = q[..., :size], q[..., size:]
    elif part.gate:
        gate = _gate(part, layer, x, heads)
    if not part.norms_after_rope:
        q, k = _both_normed(part, layer, q, k)
    if part.value_norm:
        v = layer.norm("", v, part.value_norm)
    limit = layer.config.get(part.clip) if part.clip else None
    if limit is not None:
        q, k, v = (namespace(states).clip(states, -limit, limit) for states in (q, k, v))
    q, k, v = (states.swapaxes(0, 1) for states in (q, k, v))
    q, k = _turned(part, layer, q), _turned(part, layer, k)
    if part.norms_after_rope:
        q, k = _both_normed(part, layer, q, k)
    if layer.number in context.sources:
        context.shared[layer.number] = (k, v)
    return q, k, v, gate


def _gate(part: Attention, layer: Layer, x: Array, heads: int) -> Array:
    """The separate gate, (n, heads, width of a value or 1)."""
    width = part.gate_width(layer.config, heads)
    return layer.weights.linear(f"{layer.at}{part.at}{part.gate}", x, width, part.form).reshape(len(x), heads, -1)


def _query_width(config: Config) -> int:
    return int(given(config, "num_attention_heads", "n_head", "n_heads")) * head_dim(config)


def _turned(part: Attention, layer: Layer, x: Array) -> Array:
    """Queries or keys (heads, n, head_dim) after rope."""
    settings = part.rope(layer.config, layer.number)
    if settings is None or part.alibi(layer.config):
        return x
    cos, sin = angles(settings, part.rotary(layer.config), x[0])
    return turn(x, cos, sin, part.pairs)


def _both_normed(part: Attention, layer: Layer, q: Array, k: Array) -> tuple[Array, Array]:
    if not part.norms or not (part.has_norms(layer.config) and part.normed_layers(layer.config, layer.number)):
        return q, k
    return _normed(part, layer, part.norms[0], q), _normed(part, layer, part.norms[1], k)


def _projected(
    part: Attention, layer: Layer, x: Array, heads: int, kv_heads: int, size: int
) -> tuple[Array, Array, Array]:
    """Queries (n, heads, size; twice the size with gates), keys (n, kv_heads, size) and values."""
    at, n = layer.at + part.at, len(x)
    if part.fused is None:
        keys_only = part.keys_as_values(layer.config, layer.number)
        names = part.separate[:2] if keys_only else part.separate
        widths = (2 * size if part.gated else size, size, part.value_width(layer.config))
        q, k, *values = (
            layer.weights.linear(at + name, x, count * width, part.form).reshape(n, count, width)
            for name, count, width in zip(names, (heads, kv_heads, kv_heads), widths, strict=False)
        )
        return q, k, k if keys_only else values[0]
    fused = layer.weights.linear(at + part.fused, x, (heads + 2 * kv_heads) * size, part.form)
    if not part.grouped:
        all_heads = fused.reshape(n, heads + 2 * kv_heads, size)
        return all_heads[:, :heads], all_heads[:, heads : heads + kv_heads], all_heads[:, heads + kv_heads :]
    groups = fused.reshape(n, kv_heads, heads // kv_heads + 2, size)
    return groups[:, :, :-2].reshape(n, heads, size), groups[:, :, -2], groups[:, :, -1]


def _normed(part: Attention, layer: Layer, name: str, x: Array) -> Array:
    name = layer.at + part.at + name
    if part.normed == "each":
        heads = [layer.norm(f"{name}.norms.{head}", x[:, head], part.norm) for head in range(x.shape[1])]
        stacked: Array = namespace(x).stack(heads, axis=1)
        return stacked
    if part.normed == "by_head":
        weight = layer.vector(f"{name}.weight", x).reshape(x.shape[1:])
        return normalise(x, weight, None, part.norm, layer.eps)
    if part.normed == "all":
        return layer.norm(name, x.reshape(len(x), -1), part.norm).reshape(x.shape)
    return layer.norm(name, x, part.norm)


def _excluded(
    part: Indexer, attention: Attention, layer: Layer, x: Array, short: Array, context: Context
) -> Array | None:
    """The keys that a query does not attend to, by the layer's indexer or the last one before it; None: all count."""
    if part.own(layer.config, layer.number):
        turned_by = angles(layer.config, int(layer.config["qk_rope_head_dim"]), x)
        chosen = excluded_keys(part, layer, layer.at + attention.at + part.at, x, short, turned_by)
        context.excluded.clear()
        context.excluded[layer.number] = chosen
        return chosen
    return next(iter(context.excluded.values()), None)


def _latent(part: Attention, layer: Layer, x: Array) -> tuple[Array, Array, Array, Array]:
    """DeepSeek-V2's multi-head latent attention (arXiv 2405.04434): as `_plain`, but values have another width.

    The last of the results are the compressed queries (n, rank), or x if the model has none.
    """
    config, weights, at, n = layer.config, layer.weights, layer.at + part.at, len(x)
    heads, rank = int(config["num_attention_heads"]), int(config["kv_lora_rank"])
    still, turning, value = (int(config[f"{key}_head_dim"]) for key in ("qk_nope", "qk_rope", "v"))
    extra = part.latent_norms
    eps = layer.eps if extra else _LATENT_EPS
    queries = x
    name = "q_proj"
    if config.get("q_lora_rank"):
        queries = weights.linear(at + "q_a_proj", x, int(config["q_lora_rank"]))
        queries = layer.norm(at + "q_a_layernorm", queries, part.norm, eps)
        if extra:
            queries = queries * np.float32(extra.queries(config))
        name = "q_b_proj"
    q = weights.linear(at + name, queries, heads * (still + turning)).reshape(n, heads, -1).swapaxes(0, 1)

    joint = weights.linear(at + "kv_a_proj_with_mqa", x, rank + turning)
    short = layer.norm(at + "kv_a_layernorm", joint[:, :rank], part.norm, eps)
    if extra:
        short = short * np.float32(extra.values(config))
    kv = weights.linear(at + "kv_b_proj", short, heads * (still + value)).reshape(n, heads, -1).swapaxes(0, 1)

    xp = namespace(x)
    k_turned, settings = joint[None, :, rank:], part.rope(config, layer.number)
    if extra:
        k_turned = layer.norm(at + extra.turned_key, k_turned, part.norm)
    if settings is not None:
        cos, sin = angles(settings, turning, x)
        q = xp.concatenate([q[..., :still], turn(q[..., still:], cos, sin, _pairs(part, config))], axis=-1)
        k_turned = turn(k_turned, cos, sin, _pairs(part, config))
    k_turned = xp.broadcast_to(k_turned, (heads, n, turning))
    return q, xp.concatenate([kv[..., :still], k_turned], axis=-1), kv[..., still:], queries


def _pairs(part: Attention, config: Config) -> str:
    return part.pairs if config.get("rope_interleave", True) else "half"


def angles(settings: Config, width: int, x: Array) -> tuple[Array, Array]:
    """cos and sin (n, pairs) for the tokens of x, beside x."""
    frequencies, magnitude = rope_frequencies(settings, width, len(x))
    return _cos_sin(frequencies.tobytes(), magnitude, len(x), device(x))


@lru_cache(maxsize=8)
def _cos_sin(frequencies: bytes, magnitude: float, n: int, where: Any) -> tuple[Array, Array]:
    turned = np.outer(np.arange(n), np.frombuffer(frequencies))
    cos, sin = (np.cos(turned) * magnitude).astype(np.float32), (np.sin(turned) * magnitude).astype(np.float32)
    return place(cos, where), place(sin, where)
