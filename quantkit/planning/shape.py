"""The shape of a model in llama.cpp, from the keys and tensors of a GGUF that exists or is planned.

Keys: ggml's docs/gguf.md and llama.cpp's src/llama-hparams. Sliding windows: src/models.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import LLAMA_TRAITS, Traits, traits_of

_LAYER = re.compile(r"((?:enc\.|dec\.)?)blk\.(\d+)\.(.+)")
_STATE = re.compile(r"\.(ssm|time_mix)_")


@dataclass(frozen=True)
class Layer:
    """One decoder layer. `tensors`: numpy shapes by name within the layer ("attn_q.weight").

    `head_k`, `head_v`: elements of a head in the cache; `head_v` is 0 if values are part of the keys (MLA).
    `slides`: whether the layer has a sliding window. `shared_from`: the layer whose keys and values this one attends
    to, None if it has its own.
    """

    n_head: int
    n_head_kv: int
    head_k: int
    head_v: int
    slides: bool
    tensors: Mapping[str, tuple[int, ...]]
    shared_from: int | None = None

    def rows(self, name: str) -> int:
        """Output rows of a weight of this layer, of one expert if stacked; 0 if the layer does not have it."""
        shape = self.tensors.get(name + ".weight")
        return 0 if shape is None else (shape[-2] if len(shape) > 1 else shape[-1])

    def has(self, name: str) -> bool:
        """Whether the layer has the tensor."""
        return name in self.tensors

    def has_norm(self, name: str) -> bool:
        """Whether the layer has the norm; some architectures name its weight without an ending."""
        return self.has(name + ".weight") or self.has(name)

    @cached_property
    def is_recurrent(self) -> bool:
        """Whether the layer has a state in place of a cache."""
        return any((self.has("ssm_conv1d.weight"), self.has_kimi_delta, self.has_short_convolution, self.has_time_mix))

    @cached_property
    def has_attention(self) -> bool:
        """Whether the layer has a key-value cache; it may also have a state."""
        if self.is_recurrent:
            # Gated DeltaNet names its own product attn_qkv, and Kimi Delta Attention has an attn_k without a cache
            return self.has("attn_k.weight") and not self.has_kimi_delta
        return any(name.startswith(("attn_q", "attn_k")) for name in self.tensors)

    @cached_property
    def has_one_part(self) -> bool:
        """Whether the layer is attention, a state or a feed-forward alone, after one norm."""
        mixes = self.is_recurrent or self.has_attention or self.has_one_linear
        return mixes != any(name.startswith("ffn_down") for name in self.tensors)

    @cached_property
    def has_one_linear(self) -> bool:
        """Whether the layer has one linear in place of attention."""
        return self.has("attn_output.weight") and not self.has_attention

    @cached_property
    def has_time_mix(self) -> bool:
        """Whether the layer is RWKV's."""
        return self.has("time_mix_lerp_fused.weight")

    @cached_property
    def has_kimi_delta(self) -> bool:
        """Whether the layer has Kimi Delta Attention in place of attention."""
        return self.has("ssm_conv1d_q.weight")

    @cached_property
    def has_short_convolution(self) -> bool:
        """Whether the layer has a gated short convolution in place of attention."""
        return self.has("shortconv.conv.weight")


@dataclass(frozen=True)
class ModelShape:
    """The sizes that decide memory and speed. `window` is 0 without sliding layers; `keys` have no prefix.

    Where layers run several times with the same weights, `layers` has an entry for each run.

    `tensors`: numpy shapes of the tensors outside the layers.
    """

    arch: str
    n_embd: int
    n_vocab: int
    context: int
    window: int
    n_expert_used: int
    layers: tuple[Layer, ...]
    tensors: Mapping[str, tuple[int, ...]]
    keys: Mapping[str, Any] = field(default_factory=dict)
    traits: Traits = LLAMA_TRAITS

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def n_stored(self) -> int:
        """Number of layers with weights; the others are further runs of these."""
        return self.n_layer // int(self.number("num_loops", 1))

    @property
    def is_mla(self) -> bool:
        """Whether attention is DeepSeek's latent attention with compressed keys and values."""
        return "attention.key_length_mla" in self.keys

    @cached_property
    def trunk(self) -> tuple[Layer, ...]:
        """The layers that predict the next token: those with a cache. Layers for a later token follow them."""
        return self.layers[: self.n_layer - int(self.number("nextn_predict_layers"))]

    @cached_property
    def widest_values(self) -> int:
        """Elements of a token's values in the layer that has the most."""
        return max(layer.n_head_kv * layer.head_v for layer in self.layers)

    @property
    def gives_vectors(self) -> bool:
        """Whether it is an encoder, which gives vectors and not text; some have a decoder's graph and cache."""
        return self.traits.encoder or self.keys.get("attention.causal") is False

    @property
    def index_width(self) -> int:
        """Elements of a token's key in the cache of an indexer, 0 without one."""
        return int(self.number("attention.indexer.key_length"))

    @property
    def n_deepstack(self) -> int:
        """Layers whose output an image adds to (DeepStack); 0 for text models."""
        return int(self.number("n_deepstack_layers"))

    @property
    def positions_per_token(self) -> int:
        """Numbers of a token's position: 4 for multimodal rope (llama_hparams::n_pos_per_embd), else 1."""
        sections = self.keys.get("rope.dimension_sections")
        return 4 if sections is not None and all(size > 0 for size in sections[:2]) else 1

    @cached_property
    def has_experts(self) -> bool:
        """Whether a layer has routed experts."""
        return any(layer.has("ffn_down_exps.weight") for layer in self.layers)

    def number(self, key: str, default: float = 0.0) -> float:
        """The number of a key, or `default`."""
        value = self.keys.get(key)
        return default if value is None or np.ndim(value) else float(value)


def model_shape(keys: Mapping[str, Any], tensors: Iterable[tuple[str, tuple[int, ...]]], where: str) -> ModelShape:
    """The shape from a header's keys and its tensors (name, numpy shape).

    Raises:
        CheckpointError: a size is missing or invalid, or the embedding is missing.
        UnsupportedError: a recurrent model, an encoder, or one with indexed attention.
    """
    arch = keys.get("general.architecture")
    if not isinstance(arch, str):
        raise CheckpointError(f"{where} has no general.architecture, so it is not a model; pass a model GGUF")
    traits = traits_of(arch)
    tensors = list(tensors)
    # a model of attention alone may have keys of states that no layer has
    recurrent = any(key.startswith((f"{arch}.ssm.", f"{arch}.wkv.")) for key in keys) and any(
        _STATE.search(name) for name, _ in tensors
    )
    if not traits.plannable or (
        recurrent and not (traits.delta_net or traits.kimi_delta or traits.mamba or traits.mamba2 or traits.time_mix)
    ):
        raise UnsupportedError(f"{where} is of architecture {arch}, whose memory quantkit cannot plan yet")
    arch_keys = {key.removeprefix(f"{arch}."): value for key, value in keys.items() if key.startswith(f"{arch}.")}
    n_layer = _count(arch_keys, "block_count", where)
    n_embd = _count(arch_keys, "embedding_length", where)
    outer, by_layer = _by_layer(tensors, traits, n_layer)
    if "token_embd.weight" not in outer:
        raise CheckpointError(
            f"{where} has no token_embd.weight, so it is not a complete model; pass the complete file"
        )
    heads = _per_layer(arch_keys, "attention.head_count", n_layer, None, where)
    kv_heads = _per_layer(arch_keys, "attention.head_count_kv", n_layer, heads, where)
    has_window = traits.sliding_every or traits.compressed
    window = int(arch_keys.get("attention.sliding_window") or traits.default_window) if has_window else 0
    slides = _slides(arch_keys, traits, n_layer) if window else [False] * n_layer
    layers = []
    for i in range(n_layer):
        swa = "_swa" if slides[i] and arch_keys.get("attention.key_length_swa") else ""
        head = n_embd // max(heads[i], 1)
        key = int(arch_keys.get("attention.key_length" + swa) or head)
        value = (
            0 if "attention.key_length_mla" in arch_keys else int(arch_keys.get("attention.value_length" + swa) or head)
        )
        shared = _shared_from(arch_keys, n_layer, i, slides[i])
        layers.append(Layer(heads[i], kv_heads[i], key, value, slides[i], by_layer[i], shared))
    # each run of a layer counts as one, with a cache of its own
    layers *= int(arch_keys.get("num_loops") or 1)
    return ModelShape(
        arch=arch,
        n_embd=n_embd,
        n_vocab=outer["token_embd.weight"][0],
        context=int(arch_keys.get("context_length") or 0),
        window=window,
        n_expert_used=int(arch_keys.get("expert_used_count") or 0),
        layers=tuple(layers),
        tensors=outer,
        keys=arch_keys,
        traits=traits,
    )


def _by_layer(
    tensors: Iterable[tuple[str, tuple[int, ...]]], traits: Traits, n_layer: int
) -> tuple[dict[str, tuple[int, ...]], list[dict[str, tuple[int, ...]]]]:
    """The shapes of tensors outside the layers, and those of each layer, by their name there."""
    by_layer: list[dict[str, tuple[int, ...]]] = [{} for _ in range(n_layer)]
    outer: dict[str, tuple[int, ...]] = {}
    for name, shape in tensors:
        match = _LAYER.fullmatch(name)
        if match is None or match[1] != traits.layer_prefix:
            outer[name] = shape
        elif int(match[2]) < n_layer:
            by_layer[int(match[2])][match[3]] = shape
    return outer, by_layer


def _count(keys: Mapping[str, Any], name: str, where: str) -> int:
    value = keys.get(name)
    if not isinstance(value, int | np.integer) or not 0 < value < 1 << 24:
        raise CheckpointError(f"{where} has {name} {value!r}, but a plan needs a positive whole number; check the file")
    return int(value)


def _per_layer(keys: Mapping[str, Any], name: str, n_layer: int, default: list[int] | None, where: str) -> list[int]:
    """A count per layer, from a key with one value for all layers or one per layer."""
    value = keys.get(name)
    if value is None and default is not None:
        return default
    if value is not None and np.ndim(value):
        counts = [int(count) for count in value]
        if len(counts) < n_layer:
            raise CheckpointError(f"{where} has {len(counts)} values of {name} for {n_layer} layers; check the file")
        return counts[:n_layer]
    # a model without attention states 0 heads
    return [0 if value == 0 else _count(keys, name, where)] * n_layer


def _shared_from(keys: Mapping[str, Any], n_layer: int, layer: int, slides: bool) -> int | None:
    """The layer whose cache a layer reads: of the last two with their own, a sliding one first (llama-model.cpp)."""
    first = n_layer - int(keys.get("attention.shared_kv_layers") or 0)
    return None if layer < first else first - (2 if slides else 1)


def _slides(keys: Mapping[str, Any], traits: Traits, n_layer: int) -> list[bool]:
    """Which layers have a sliding window: from the file, else by the architecture's pattern (load_swa_pattern)."""
    pattern = keys.get("attention.sliding_window_pattern")
    if pattern is not None and np.ndim(pattern):
        return [bool(slides) for slides in pattern][:n_layer] + [False] * max(0, n_layer - len(pattern))
    every = int(pattern) if pattern else traits.sliding_every or 0
    full = 0 if traits.full_first else every - 1
    return [every == 0 or i % every != full for i in range(n_layer)]
