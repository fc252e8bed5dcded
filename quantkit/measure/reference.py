"""The forward pass of the Llama family in plain numpy, straight from a checkpoint's tensors and its config.json.

It shares nothing with llama.cpp or with the conversion, so its logits are the yardstick for a converted file.
A few million elements of one matrix are in memory at a time, in float32, when the caller can read rows.
Source: Llama, Mistral and Mixtral as transformers computes them (rotate-half rope, grouped-query attention, SwiGLU).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import UnsupportedError
from quantkit.measure.rope import rope_frequencies

Array = npt.NDArray[np.float32]
Read = Callable[[str], npt.NDArray[Any]]
ReadRows = Callable[[str, int, int], npt.NDArray[Any]]

ARCHITECTURES = ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")
_EMBEDDING = "model.embed_tokens.weight"
_SLICE_ELEMENTS = 1 << 22


def reference_logits(
    read: Read, config: Mapping[str, Any], tokens: Sequence[int], *, rows: ReadRows | None = None
) -> Array:
    """Logits (n_tokens, n_vocab) in float32 for one sequence of token ids.

    `read(name)` gives a whole tensor by its Hugging Face name, in any float dtype; `rows(name, start, stop)` gives some
    rows of it, and without it whole tensors are read. `config` is config.json. A sliding window is not applied: the
    sequence must be shorter than it. Raises UnsupportedError for an architecture, activation or rope type it does not
    know.
    """
    shape = _shape(config)
    if rows is None:
        rows = _rows_of_whole(read)
    weights = _Weights(read, rows, shape.attention_bias, shape.mlp_bias)
    angles, magnitude = rope_frequencies(config, shape.head_dim, len(tokens))
    turned = np.outer(np.arange(len(tokens)), angles)
    cos = (np.cos(turned) * magnitude).astype(np.float32)
    sin = (np.sin(turned) * magnitude).astype(np.float32)

    x = np.concatenate([_f32(rows(_EMBEDDING, token, token + 1)) for token in tokens])
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        normed = _rms_norm(x, read(at + "input_layernorm.weight"), shape.eps)
        x = x + _attention(weights, at + "self_attn.", normed, shape, cos, sin)
        normed = _rms_norm(x, read(at + "post_attention_layernorm.weight"), shape.eps)
        x = x + _feed_forward(weights, at, normed, shape)
    x = _rms_norm(x, read("model.norm.weight"), shape.eps)

    return weights.times(shape.head, x, shape.vocab)


@dataclass(frozen=True)
class _Shape:
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    inner: int
    vocab: int
    eps: float
    head: str
    attention_bias: bool
    mlp_bias: bool
    experts: int
    experts_per_token: int


def _shape(config: Mapping[str, Any]) -> _Shape:
    architecture = (config.get("architectures") or ["LlamaForCausalLM"])[0]
    if architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"the reference forward knows {', '.join(ARCHITECTURES)}; config.json says {architecture}"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedError(
            f"the reference forward knows silu; config.json says hidden_act {config['hidden_act']!r}"
        )
    heads = int(config["num_attention_heads"])
    mixture = architecture == "MixtralForCausalLM"
    return _Shape(
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
        hidden=int(config["hidden_size"]),
        inner=int(config["intermediate_size"]),
        vocab=int(config["vocab_size"]),
        eps=float(config.get("rms_norm_eps", 1e-6)),
        head=_EMBEDDING if config.get("tie_word_embeddings") else "lm_head.weight",
        attention_bias=bool(config.get("attention_bias")),
        mlp_bias=bool(config.get("mlp_bias")),
        experts=int(config["num_local_experts"]) if mixture else 0,
        experts_per_token=int(config.get("num_experts_per_tok") or 2) if mixture else 0,
    )


@dataclass(frozen=True)
class _Weights:
    read: Read
    rows: ReadRows
    attention_bias: bool
    mlp_bias: bool

    def apply(self, name: str, x: Array, n_out: int, bias: bool) -> Array:
        """x (n, in) through the linear `name`, whose weight is (n_out, in)."""
        out = self.times(name + ".weight", x, n_out)
        return out + _f32(self.read(name + ".bias")) if bias else out

    def times(self, name: str, x: Array, n_out: int) -> Array:
        """x (n, in) times the transpose of the matrix `name` (n_out, in), a slice of its rows at a time."""
        out = np.empty((len(x), n_out), np.float32)
        step = max(1, _SLICE_ELEMENTS // x.shape[1])
        for start in range(0, n_out, step):
            stop = min(start + step, n_out)
            out[:, start:stop] = x @ _f32(self.rows(name, start, stop)).T
        return out


def _attention(weights: _Weights, at: str, x: Array, shape: _Shape, cos: Array, sin: Array) -> Array:
    n = len(x)

    def projected(name: str, heads: int) -> Array:
        flat = weights.apply(at + name, x, heads * shape.head_dim, weights.attention_bias)
        return flat.reshape(n, heads, shape.head_dim).swapaxes(0, 1)

    q = _rotate(projected("q_proj", shape.heads), cos, sin)
    k = _rotate(projected("k_proj", shape.kv_heads), cos, sin)
    v = projected("v_proj", shape.kv_heads)
    shared_by = shape.heads // shape.kv_heads
    k, v = np.repeat(k, shared_by, axis=0), np.repeat(v, shared_by, axis=0)
    scores = q @ k.swapaxes(1, 2) / np.float32(shape.head_dim**0.5)
    scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
    mixed = _softmax(scores) @ v
    flat = mixed.swapaxes(0, 1).reshape(n, shape.heads * shape.head_dim)
    return weights.apply(at + "o_proj", flat, shape.hidden, weights.attention_bias)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Hugging Face's convention: pair i of a head is its elements i and i + head_dim / 2. x is (heads, n, head_dim)."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _feed_forward(weights: _Weights, at: str, x: Array, shape: _Shape) -> Array:
    if not shape.experts:
        return _swiglu(weights, at + "mlp.", ("gate_proj", "up_proj", "down_proj"), x, shape, weights.mlp_bias)
    at += "block_sparse_moe."
    routing = _softmax(weights.apply(at + "gate", x, shape.experts, False))
    chosen = np.argsort(-routing, axis=-1, kind="stable")[:, : shape.experts_per_token]
    share = np.take_along_axis(routing, chosen, axis=-1)
    share /= share.sum(axis=-1, keepdims=True)
    out = np.zeros_like(x)
    for expert in range(shape.experts):
        rows, slots = np.nonzero(chosen == expert)
        if len(rows):
            answer = _swiglu(weights, f"{at}experts.{expert}.", ("w1", "w3", "w2"), x[rows], shape, False)
            out[rows] += answer * share[rows, slots][:, None]
    return out


def _swiglu(weights: _Weights, at: str, names: tuple[str, str, str], x: Array, shape: _Shape, bias: bool) -> Array:
    gate_name, up_name, down_name = names
    gate = weights.apply(at + gate_name, x, shape.inner, bias)
    gate /= 1 + np.exp(-gate)
    up = weights.apply(at + up_name, x, shape.inner, bias)
    return weights.apply(at + down_name, gate * up, shape.hidden, bias)


def _rms_norm(x: Array, weight: npt.NDArray[Any], eps: float) -> Array:
    return _f32(_f32(weight) * (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps))))


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True), np.float32)


def _rows_of_whole(read: Read) -> ReadRows:
    """For a caller that cannot read rows: the last tensor stays in memory, so a head in chunks is read once."""
    held: dict[str, npt.NDArray[Any]] = {}

    def rows(name: str, start: int, stop: int) -> npt.NDArray[Any]:
        if name not in held:
            held.clear()
            held[name] = read(name)
        return held[name][start:stop]

    return rows


def _f32(values: npt.NDArray[Any]) -> Array:
    return np.asarray(values, dtype=np.float32)
