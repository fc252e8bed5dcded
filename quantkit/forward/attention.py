"""Causal self-attention as an architecture describes it."""

from dataclasses import dataclass

import numpy as np

from quantkit.forward.arithmetic import alibi_slopes, normalise, softcapped, softmax, turn
from quantkit.forward.description import Attention, Config, Norm, given, head_dim
from quantkit.forward.rope import rope_frequencies
from quantkit.forward.weights import Array, Weights

# DeepSeek's norms within attention do not take config.json's epsilon.
_LATENT_EPS = 1e-6


@dataclass(frozen=True)
class Layer:
    """Where in a model a part is: the names of its layer begin with `at`."""

    weights: Weights
    config: Config
    number: int
    at: str
    eps: float

    def norm(self, name: str, x: Array, norm: Norm, eps: float | None = None) -> Array:
        bias = name + ".bias"
        return normalise(
            x,
            self.weights.vector(name + ".weight") if norm.weighted else np.ones(1, np.float32),
            self.weights.vector(bias) if self.weights.has(bias) else None,
            norm,
            self.eps if eps is None else eps,
        )


def attend(part: Attention, layer: Layer, x: Array) -> Array:
    """What attention gives for the hidden states x (n, hidden): (n, hidden)."""
    q, k, v = _latent(part, layer, x) if part.latent else _plain(part, layer, x)
    heads, n, _ = q.shape
    shared_by = heads // len(k)
    k, v = np.repeat(k, shared_by, axis=0), np.repeat(v, shared_by, axis=0)

    scores = softcapped(
        q @ k.swapaxes(1, 2) * np.float32(part.scale(layer.config, layer.number)),
        layer.config.get(part.softcap) if part.softcap else None,
    )
    distance = np.arange(n)[:, None] - np.arange(n)
    if part.alibi(layer.config):
        scores -= alibi_slopes(heads)[:, None, None] * distance.astype(np.float32)
    window = part.window(layer.config, layer.number) or n
    scores[:, (distance < 0) | (distance >= window)] = -np.inf
    if part.sinks:
        sinks = layer.weights.vector(layer.at + part.at + part.sinks)
        scores = np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (heads, n, 1))], axis=-1)
    mixed = softmax(scores)[..., :n] @ v
    flat = mixed.swapaxes(0, 1).reshape(n, -1)
    return layer.weights.linear(layer.at + part.at + part.out, flat, x.shape[1], part.form)


def _plain(part: Attention, layer: Layer, x: Array) -> tuple[Array, Array, Array]:
    """Queries, keys and values (heads, n, head_dim), with norms and rope done."""
    heads, kv_heads = int(given(layer.config, "num_attention_heads", "n_head")), part.kv_heads(layer.config)
    size = head_dim(layer.config)
    q, k, v = _projected(part, layer, x, heads, kv_heads, size)
    if part.norms and part.has_norms(layer.config):
        q = _normed(part, layer, part.norms[0], q)
        k = _normed(part, layer, part.norms[1], k)
    limit = layer.config.get(part.clip) if part.clip else None
    if limit is not None:
        q, k, v = (np.clip(each, -np.float32(limit), np.float32(limit)) for each in (q, k, v))
    q, k, v = (each.swapaxes(0, 1) for each in (q, k, v))
    settings = part.rope(layer.config, layer.number)
    if settings is None or part.alibi(layer.config):
        return q, k, v
    cos, sin = _angles(settings, part.rotary(layer.config), len(x))
    return turn(q, cos, sin, part.pairs), turn(k, cos, sin, part.pairs), v


def _projected(
    part: Attention, layer: Layer, x: Array, heads: int, kv_heads: int, size: int
) -> tuple[Array, Array, Array]:
    """Queries (n, heads, size), keys and values (n, kv_heads, size)."""
    at, n = layer.at + part.at, len(x)
    if part.fused is None:
        q, k, v = (
            layer.weights.linear(at + name, x, count * size, part.form).reshape(n, count, size)
            for name, count in zip(part.separate, (heads, kv_heads, kv_heads), strict=True)
        )
        return q, k, v
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
        return np.stack(heads, axis=1)
    if part.normed == "all":
        return layer.norm(name, x.reshape(len(x), -1), part.norm).reshape(x.shape)
    return layer.norm(name, x, part.norm)


def _latent(part: Attention, layer: Layer, x: Array) -> tuple[Array, Array, Array]:
    """DeepSeek-V2's multi-head latent attention (arXiv 2405.04434): as `_plain`, values of a width of their own."""
    config, weights, at, n = layer.config, layer.weights, layer.at + part.at, len(x)
    heads, rank = int(config["num_attention_heads"]), int(config["kv_lora_rank"])
    still, turning, value = (int(config[f"{key}_head_dim"]) for key in ("qk_nope", "qk_rope", "v"))
    short = x
    name = "q_proj"
    if config.get("q_lora_rank"):
        short = weights.linear(at + "q_a_proj", x, int(config["q_lora_rank"]))
        short = layer.norm(at + "q_a_layernorm", short, part.norm, _LATENT_EPS)
        name = "q_b_proj"
    q = weights.linear(at + name, short, heads * (still + turning)).reshape(n, heads, -1).swapaxes(0, 1)

    joint = weights.linear(at + "kv_a_proj_with_mqa", x, rank + turning)
    short = layer.norm(at + "kv_a_layernorm", joint[:, :rank], part.norm, _LATENT_EPS)
    kv = weights.linear(at + "kv_b_proj", short, heads * (still + value)).reshape(n, heads, -1).swapaxes(0, 1)

    cos, sin = _angles(config, turning, n)
    q_turned = turn(q[..., still:], cos, sin, _pairs(part, config))
    k_turned = turn(joint[None, :, rank:], cos, sin, _pairs(part, config))
    k_turned = np.broadcast_to(k_turned, (heads, n, turning))
    q = np.concatenate([q[..., :still], q_turned], axis=-1)
    return q, np.concatenate([kv[..., :still], k_turned], axis=-1), kv[..., still:]


def _pairs(part: Attention, config: Config) -> str:
    return part.pairs if config.get("rope_interleave", True) else "half"


def _angles(settings: Config, width: int, n: int) -> tuple[Array, Array]:
    frequencies, magnitude = rope_frequencies(settings, width, n)
    turned = np.outer(np.arange(n), frequencies)
    return (np.cos(turned) * magnitude).astype(np.float32), (np.sin(turned) * magnitude).astype(np.float32)
