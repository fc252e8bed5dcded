"""Attention as data: heads, its indexers, its compressors. Other mixers are in `recurrent_mixers`.

A name is a tensor's without `.weight` or `.bias`; names of a part are under its `at`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from quantkit.forward.config_keys import Config, by_head_dim, head_dim, key_value_heads, partial_rotary
from quantkit.forward.parts import Form, Norm


@dataclass(frozen=True)
class Indexer:
    """DeepSeek Sparse Attention: index heads score the keys, and a query attends to the keys with the best scores.

    Attributes:
        queries, keys, weights: linears for index queries (from the compressed queries), one index key, and a weight of
            each index head.
        norm: the LayerNorm of the index key.
        pairs: which values rotate together, see `Attention`; as many as in attention, the first of a head.
        rotates_last: the last values of a head rotate, not the first.
        eps: what the norm of the index key adds to the variance.
        top: number of keys that a query attends to.
        own: whether a layer has an indexer; another layer uses the choice of the last layer before it that has.
        layers: whether a layer attends to chosen keys at all.
    """

    at: str = "indexer."
    queries: str = "wq_b"
    keys: str = "wk"
    weights: str = "weights_proj"
    norm: str = "k_norm"
    pairs: Literal["half", "neighbours"] = "half"
    rotates_last: bool = False
    eps: Callable[[Config], float] = lambda _: 1e-6
    heads: Callable[[Config], int] = lambda config: int(config["index_n_heads"])
    width: Callable[[Config], int] = lambda config: int(config["index_head_dim"])
    top: Callable[[Config], int] = lambda config: int(config["index_topk"])
    own: Callable[[Config, int], bool] = lambda _config, _layer: True
    layers: Callable[[Config, int], bool] = lambda _config, _layer: True


@dataclass(frozen=True)
class LatentNorms:
    """Dots 3's latent attention: factors of the normed latents, and a norm of the rotated part of the key.

    Attributes:
        queries, values: the factors of the latent that queries come from, and of that of keys and values.
        turned_key: the norm of what all heads' keys share, before it rotates.
    """

    queries: Callable[[Config], float]
    values: Callable[[Config], float]
    turned_key: str


@dataclass(frozen=True)
class BlockIndexer:
    """MiniMax Sparse Attention: index heads score the keys, and a query attends to the blocks of the best keys.

    Each key head has an index head. Index queries and keys are normed and rotated as those of attention are.

    Attributes:
        queries, keys: linears for index queries and for one index key.
        norms: those of an index query and of the index key.
        block: keys of a block, which is scored by its best key.
        top: number of blocks that a query attends to.
        local: number of blocks that a query always attends to: its own and those before it.
        layers: whether a layer has it.
    """

    layers: Callable[[Config, int], bool]
    heads: Callable[[Config], int]
    width: Callable[[Config], int]
    block: Callable[[Config], int]
    top: Callable[[Config], int]
    local: Callable[[Config], int]
    queries: str = "index_q_proj"
    keys: str = "index_k_proj"
    norms: tuple[str, str] = ("index_q_norm", "index_k_norm")


@dataclass(frozen=True)
class Attention:
    """Attention with heads, of which several may share a key and a value.

    Attributes:
        causal: whether a token attends to itself and earlier tokens only; False for encoders. A window then reaches to
            both sides, half of it each.
        at: prefix of the part's names.
        separate: names of the linears for queries, keys and values.
        fused: one linear for all three instead: all queries, all keys, all values; with `grouped`, for each key head
            its queries, its key and its value.
        kv_heads: number of key-value heads.
        value_width: elements of a value, where queries, keys and values have a linear each.
        norms: norms of queries and keys; `has_norms`: whether config.json uses them.
        normed: a norm over a head, over all heads at once, or over a head with separate weights: a tensor per head
            (`each`) or one of shape (heads, head_dim) (`by_head`).
        norms_after_rope: whether the norms come after the rotation.
        normed_layers: the layers whose queries and keys have norms.
        clip: the config key of the limit on queries, keys and values.
        pairs: which values of a head rotate together: i and i + half the rotary width, or neighbours.
        rotary: number of rotated values of a head.
        rope: the config with a layer's rope settings, or None for a layer without rope.
        alibi: whether ALiBi slopes are added to the scores.
        scale: factor on the scores.
        softcap: the config key of the scores' soft cap.
        window: tokens of a layer's sliding window, or None.
        chunk: tokens of a layer's chunks, or None; a token attends within its chunk only.
        late_queries: a layer's (beta, length, first), or None: queries are multiplied by
            1 + beta ln(1 + floor(position / length)); the first token has the position `first`.
        sinks: one score a head that takes part in the softmax and has no value, in layers that have the tensor.
        latent: DeepSeek's latent attention: queries, keys and values from short vectors; all heads share the rotated
            part of the key.
        latent_norms: with latent attention, factors and a norm beside those of DeepSeek; the norms of the latents then
            add the model's epsilon.
        indexer: with latent attention, what chooses the keys that a query attends to.
        blocks: without latent attention, what chooses the blocks of keys that a query attends to.
        value_norm: the norm of a value over its head.
        keys_as_values: whether a layer's values are its keys before norm and rope.
        shared_from: the earlier layer whose keys and values a layer uses; None for a layer with keys and values.
        gated: the linear for queries gives each head a gate of the same width after its query; the output of
            attention is multiplied by the gate's sigmoid.
        gate: the separate linear that gives such a gate; `gate_per_head`: it gives one number a head;
            `gate_function`: what the gate passes before the product.
        multipliers: factors of queries, keys, values and the output, after their linears (muP).
    """

    causal: bool = True
    at: str = "self_attn."
    separate: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")
    fused: str | None = None
    grouped: bool = False
    out: str = "o_proj"
    form: Form = Form()
    kv_heads: Callable[[Config], int] = key_value_heads
    value_width: Callable[[Config], int] = head_dim
    norms: tuple[str, str] | None = None
    has_norms: Callable[[Config], bool] = lambda _: True
    normed: Literal["head", "all", "each", "by_head"] = "head"
    norm: Norm = Norm()
    norms_after_rope: bool = False
    normed_layers: Callable[[Config, int], bool] = lambda _config, _layer: True
    clip: str | None = None
    pairs: Literal["half", "neighbours"] = "half"
    rotary: Callable[[Config], int] = partial_rotary
    rope: Callable[[Config, int], Config | None] = lambda config, _: config
    alibi: Callable[[Config], bool] = lambda _: False
    scale: Callable[[Config, int], float] = by_head_dim
    softcap: str | None = None
    window: Callable[[Config, int], int | None] = lambda _config, _layer: None
    late_queries: Callable[[Config, int], tuple[float, int, int] | None] = lambda _config, _layer: None
    chunk: Callable[[Config, int], int | None] = lambda _config, _layer: None
    sinks: str | None = None
    latent: bool = False
    latent_norms: LatentNorms | None = None
    indexer: Indexer | None = None
    blocks: BlockIndexer | None = None
    value_norm: Norm | None = None
    keys_as_values: Callable[[Config, int], bool] = lambda _config, _layer: False
    shared_from: Callable[[Config, int], int | None] = lambda _config, _layer: None
    gated: bool = False
    gate: str | None = None
    gate_per_head: Callable[[Config], bool] = lambda _: False
    gate_function: Literal["sigmoid", "softplus"] = "sigmoid"
    multipliers: Callable[[Config], tuple[float, float, float, float]] | None = None

    def gate_width(self, config: Config, heads: int) -> int:
        """Rows of the separate linear for the gate."""
        return heads if self.gate_per_head(config) else heads * self.value_width(config)


@dataclass(frozen=True)
class Compressor:
    """DeepSeek-V4's compressor: one key (and value) for each window of tokens, a softmax-weighted mean per channel.

    Attributes:
        values, weights: linears for a token's contribution and for the logarithm of its weight.
        positions: the tensor that is added to the latter, (tokens of a window, channels).
        norm: the norm of the means, before their rotation.
    """

    at: str = "compressor."
    values: str = "wkv"
    weights: str = "wgate"
    positions: str = "ape"
    norm: str = "norm"


@dataclass(frozen=True)
class CompressedAttention:
    """DeepSeek-V4's attention: the tokens of a window, and compressed ones before it, with one key for all heads.

    The key is the value too. So the rotation of the last values of a head is undone in the output, which leaves
    through a linear for each group of heads, and one for all. All norms are RMS norms.

    Attributes:
        queries: the linears for compressed queries and for queries; the norm between them is `query_norm`. A head's
            query has a norm without a weight after them.
        keys: the linear for the key; `key_norm` is its norm.
        groups, out: the linear for each group of heads, stacked in one tensor, and the last one.
        sinks: one score a head that takes part in the softmax and has no value.
        compressor: what compresses the tokens, in layers with a `ratio`.
        indexer: the prefix of the index heads, which choose compressed tokens in layers of windows that `overlap`:
            `index_queries` (from the compressed queries) and `index_weights` are their linears.
        ratio: tokens that a layer compresses into one, 0 for none.
        overlap: whether the windows of a layer overlap, so that a compressed token covers two of them.
        rope: the config with a layer's rope settings.
    """

    at: str = "attn."
    queries: tuple[str, str] = ("wq_a", "wq_b")
    query_norm: str = "q_norm"
    keys: str = "wkv"
    key_norm: str = "kv_norm"
    groups: str = "wo_a"
    out: str = "wo_b"
    sinks: str = "attn_sink"
    compressor: Compressor = Compressor()
    indexer: str = "indexer."
    index_queries: str = "wq_b"
    index_weights: str = "weights_proj"
    ratio: Callable[[Config, int], int] = lambda config, layer: int(config["compress_ratios"][layer])
    overlap: Callable[[Config, int], bool] = lambda config, layer: int(config["compress_ratios"][layer]) == 4
    rope: Callable[[Config, int], Config] = lambda config, _layer: config
    rotary: Callable[[Config], int] = lambda config: int(config["qk_rope_head_dim"])
    rank: Callable[[Config], int] = lambda config: int(config["q_lora_rank"])
    group_count: Callable[[Config], int] = lambda config: int(config["o_groups"])
    group_rank: Callable[[Config], int] = lambda config: int(config["o_lora_rank"])
    window: Callable[[Config], int] = lambda config: int(config["sliding_window"])
    index_heads: Callable[[Config], int] = lambda config: int(config["index_n_heads"])
    index_width: Callable[[Config], int] = lambda config: int(config["index_head_dim"])
    top: Callable[[Config], int] = lambda config: int(config["index_topk"])

    def channels(self, config: Config, layer: int, width: int) -> int:
        """Channels of a compressor of keys of that width."""
        return 2 * width if self.overlap(config, layer) else width
