"""The graph of DeepSeek-V4, as llama.cpp builds it (src/models/deepseek4.cpp): streams, and compressed attention.

The hidden states are several streams (width, streams, n). Each part of a layer reads a mixture of them, and its output
goes back to all. Attention has a cache of the last tokens, and one of compressed tokens with the state that makes them.
An indexer has a cache and a state of its own.
"""

from dataclasses import dataclass

from quantkit.gguf.types import block_size, row_bytes
from quantkit.planning.context import Context
from quantkit.planning.drawing import Drawing, largest_turn
from quantkit.planning.feed_forward import feed_forward
from quantkit.planning.shape import Layer, ModelShape
from quantkit.planning.tensors import (
    F16,
    F32,
    I32,
    I64,
    Tensor,
    cache_of,
    fresh,
    leaf,
    matmul,
    permuted,
    same,
    stored,
    view,
)

SPARSE, HEAVY = 4, 128
"""Tokens that a layer compresses into one. Windows of the first kind overlap, and an indexer chooses among them."""


@dataclass(frozen=True)
class Compressed:
    """Inputs of the compressed tokens of one ratio: those of the state, of the rows to write, and the mask."""

    ratio: int
    cells: int
    blocks: int
    rows: int
    positions: Tensor
    kept: tuple[Tensor, Tensor]
    read: Tensor
    written: tuple[Tensor, Tensor]
    mask: Tensor
    turn: Tensor | None


class CompressedInputs:
    """The inputs of both ratios, and of the indexer."""

    def __init__(self, d: Drawing) -> None:
        shape, flash = d.shape, F16 if d.context.flash_on else F32
        head = shape.layers[0].head_k
        turns = d.context.kv_type != "f16" and head % 64 == 0
        turn = largest_turn(head) if turns or head == shape.index_width else 0
        self.raw_turn = leaf("turn", turn, turn) if turn else None
        self.sparse = _inputs(d, SPARSE, flash, turn)
        self.heavy = _inputs(d, HEAVY, flash, turn)
        self.index = _inputs(d, SPARSE, F16, largest_turn(shape.index_width))


def _inputs(d: Drawing, ratio: int, mask_size: int, turn: int) -> Compressed:
    n, cells, rows = d.n, compressed_cells(d.context, ratio), _state_rows(ratio)
    blocks, width = n // ratio + 1, 2 if ratio == SPARSE else 1
    kept = min(n, rows)
    return Compressed(
        ratio,
        cells,
        blocks,
        rows,
        leaf("state positions", n, size=I32),
        (leaf("kept from", kept, size=I32), leaf("kept to", kept, size=I32)),
        leaf("read", width * ratio * blocks, size=I32),
        (leaf("written", blocks, size=I64), leaf("written positions", blocks, size=I32)),
        leaf("mask", cells, n, size=mask_size),
        leaf("turn", turn, turn) if turn else None,
    )


def compressed_cells(context: Context, ratio: int) -> int:
    """Cells of the cache of compressed tokens (llama_kv_cache_dsv4's constructor)."""
    return -(-max(-(-context.cells // ratio), 1) // 256) * 256


def _state_rows(ratio: int) -> int:
    return 2 * ratio if ratio == SPARSE else ratio


def compressed_bytes(shape: ModelShape, layer: Layer, context: Context) -> int:
    """Bytes of a layer's caches and states; values are keys, so no cache has them."""
    kind = context.kv_cache
    size = row_bytes(kind, layer.head_k) * context.window_cells(shape.window)
    for name, width in (("attn", layer.head_k), ("indexer", shape.index_width)):
        channels = layer.rows(f"{name}_compressor_kv")
        if channels:
            ratio = layer.tensors[f"{name}_compressor_ape.weight"][0]
            size += row_bytes(kind, width) * compressed_cells(context, ratio)
            size += 2 * F32 * channels * _state_rows(ratio)
    return size


def spread_streams(d: Drawing, x: Tensor) -> Tensor:
    """The streams before the first layer."""
    return fresh((d.shape.n_embd, stream_count(d), d.n), view(x, (d.shape.n_embd, 1, d.n)))


def joined_streams(d: Drawing, x: Tensor) -> Tensor:
    """The rows with an output of the streams as one, (width, n)."""
    width, count = d.shape.n_embd, stream_count(d)
    x = view(fresh((width * count, d.n), view(x, (width * count, d.n)), d.outputs), (width, count, d.n))
    mixes = matmul("output_hc_fn.weight", count, same(view(x, (width * count, d.n))))
    share = affine(mixes, "output_hc", (count, d.n))
    share = same(same(share))
    total: Tensor | None = None
    for _ in range(count):
        part = same(view(x, (width, d.n), (width * count * F32,)), view(share, (1, d.n), (count * F32,)))
        total = part if total is None else same(total, part)
    assert total is not None
    return total


def compressed_layer(d: Drawing, x: Tensor, layer: Layer, _number: int) -> Tensor:
    """A layer over the streams x."""
    read, post, comb = _connected(d, x, "hc_attn")
    out = _attention(d, d.norm(read, "attn_norm", layer.tensors), layer)
    x = fresh(x.shape[:3], out, x, post, comb)
    read, post, comb = _connected(d, x, "hc_ffn")
    for part in (x, post, comb):
        d.graph.expand(part)
    out = feed_forward(d, d.norm(read, "ffn_norm", layer.tensors), layer)
    return fresh(x.shape[:3], out, x, post, comb)


def stream_count(d: Drawing) -> int:
    """Number of streams of hidden states."""
    return int(d.shape.number("hyper_connection.count"))


def affine(mixes: Tensor, name: str, sizes: tuple[int, int]) -> Tensor:
    """Part of the coefficients times a scale, plus a base."""
    part = view(mixes, sizes, (mixes.shape[0] * F32,))
    return same(same(part, weight=f"{name}_scale.weight"), weight=f"{name}_base.weight")


def _connected(d: Drawing, x: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """What a part reads of the streams x, and the coefficients of its output and of the streams."""
    width, count, n = d.shape.n_embd, stream_count(d), d.n
    mixes = matmul(d.named(f"{name}_fn.weight"), (2 + count) * count, same(view(x, (width * count, n))))
    pre, post = (same(same(affine(mixes, d.named(name), (count, n)))) for _ in range(2))
    comb = fresh((count, count, n), mixes)
    comb.weight = d.named(f"{name}_base.weight")
    return fresh((width, n), x, pre), post, comb


def _attention(d: Drawing, x: Tensor, layer: Layer) -> Tensor:
    inputs, n, heads, size = d.compressed, d.n, layer.n_head, layer.head_k
    assert inputs is not None
    short = d.norm(d.linear(layer, "attn_q_a", x), "attn_q_a_norm", layer.tensors)
    q = d.rope(same(view(d.linear(layer, "attn_q_b", short), (size, heads, n))))
    keys = view(d.norm(d.linear(layer, "attn_kv", x), "attn_kv_a_norm", layer.tensors), (size, 1, n))
    keys = d.rope(keys)
    far: tuple[Tensor, Tensor] | None = None
    if layer.has("indexer_compressor_kv.weight"):
        kept = _compressed(d, x, layer, "attn", inputs.sparse, size)
        index_keys = _compressed(d, x, layer, "indexer", inputs.index, d.shape.index_width)
        chosen = _chosen(d, x, short, index_keys, layer)
        far = kept, _shown(d, inputs.sparse.mask, chosen)
    elif layer.has("attn_compressor_kv.weight"):
        far = _compressed(d, x, layer, "attn", inputs.heavy, size), inputs.heavy.mask
    out = _attend(d, q, keys, far, layer)
    # values are keys, whose rotation is undone
    out = d.rope(view(out, (size, heads, n)))
    groups = int(d.shape.number("attention.output_group_count"))
    by_group = permuted(view(out, (size * heads // groups, groups, n)))
    rank = layer.rows("attn_output_a") // groups
    low = matmul(d.named("attn_output_a.weight"), rank, by_group)
    return d.linear(layer, "attn_output_b", fresh((rank * groups, n), permuted(low)))


def _compressed(d: Drawing, x: Tensor, layer: Layer, name: str, inputs: Compressed, width: int) -> Tensor:
    """Update the state of a compressor, and write the tokens it completes into its cache, which is returned."""
    n, channels, ratio, blocks = d.n, layer.rows(f"{name}_compressor_kv"), inputs.ratio, inputs.blocks
    values, scores = (d.linear(layer, f"{name}_compressor_{part}", x) for part in ("kv", "gate"))
    by_position = fresh((channels, n), inputs.positions)
    by_position.weight = d.named(f"{name}_compressor_ape.weight")
    scores = same(scores, by_position)
    states = [cache_of(f"{name} {part}", channels, inputs.rows, size=F32, layer=d.layer) for part in ("state", "score")]
    sources = [
        fresh((channels, inputs.rows + n), view(state, (channels, inputs.rows)), part)
        for state, part in zip(states, (values, scores), strict=True)
    ]
    if ratio == SPARSE:
        new = _overlapping(sources, inputs, width)
    else:
        rows = (
            view(fresh((channels, ratio * blocks), source, inputs.read), (width, ratio, blocks)) for source in sources
        )
        new = [fresh((ratio, width, blocks), part) for part in rows]
    mixed = same(new[0], same(new[1]))
    token = fresh((width, 1, blocks), fresh((1, width, blocks), mixed))
    token = same(same(token), weight=d.named(f"{name}_compressor_norm.weight"))
    token = same(token, inputs.written[1])
    if inputs.turn is not None:
        token = _turned(token, inputs.turn)
    element = block_size(d.context.kv_cache)
    cache = cache_of(f"{name} keys", width, inputs.cells, size=element[1] / element[0], layer=d.layer)
    d.graph.expand(stored(cache, view(token, (width, blocks)), inputs.written[0]))
    taken = [fresh((channels, inputs.kept[0].shape[0]), part, inputs.kept[0]) for part in (values, scores)]
    for state, part in zip(states, taken, strict=True):
        d.graph.expand(stored(state, part, inputs.kept[1]))
    return cache


def _overlapping(sources: list[Tensor], inputs: Compressed, width: int) -> list[Tensor]:
    """Values and scores of windows and those before them, (tokens, width, windows)."""
    ratio, blocks, channels = inputs.ratio, inputs.blocks, 2 * width
    padded = []
    for source in sources:
        zero = view(same(view(source, (channels,))), (channels, 1))
        padded.append(fresh((channels, source.shape[1] + 1), source, zero))
    rows = [fresh((channels, 2 * ratio * blocks), source, inputs.read) for source in padded]

    def half(part: Tensor) -> Tensor:
        cut = view(part, (width, ratio * blocks), (channels * F32,))
        return view(fresh((width, ratio * blocks), cut), (width, ratio, blocks))

    both = [fresh((width, 2 * ratio, blocks), half(part), half(part)) for part in rows]
    return [fresh((2 * ratio, width, blocks), part) for part in both]


def _chosen(d: Drawing, x: Tensor, short: Tensor, keys: Tensor, layer: Layer) -> Tensor:
    """Numbers of the compressed tokens with the highest scores, (count, n)."""
    inputs = d.compressed
    assert inputs is not None and inputs.index.turn is not None
    heads, width, cells = layer.rows("indexer.proj"), d.shape.index_width, inputs.index.cells
    queries = d.rope(view(d.linear(layer, "indexer.attn_q_b", short), (width, heads, d.n)))
    queries = _turned(queries, inputs.index.turn)
    weights = view(same(d.linear(layer, "indexer.proj", x)), (heads, d.n))
    kept = view(keys, (width, 1, cells))
    scores = fresh((cells, d.n), view(queries, (width, heads, d.n)), kept, weights, inputs.index.mask)
    count = min(cells, int(d.shape.number("attention.indexer.top_k")))
    return fresh((count, d.n), fresh((count, d.n), scores, size=I32), size=I32)


def _shown(d: Drawing, mask: Tensor, chosen: Tensor) -> Tensor:
    """The mask with all but the chosen tokens hidden."""
    cells, count = mask.shape[0], chosen.shape[0]
    rows = view(same(mask), (1, cells, d.n))
    zeros = leaf("zeros", 1, count, d.n, size=int(mask.size))
    zeros.kind = "constant"
    shown = stored(rows, same(zeros), view(chosen, (count, d.n)))
    return same(view(shown, (cells, d.n)), mask)


def _attend(d: Drawing, q: Tensor, keys: Tensor, far: tuple[Tensor, Tensor] | None, layer: Layer) -> Tensor:
    """Attention to the cache of the last tokens and to compressed ones: (size * heads, n)."""
    inputs, n, heads, size = d.compressed, d.n, layer.n_head, layer.head_k
    assert inputs is not None
    if inputs.raw_turn is not None:
        q, keys = _turned(q, inputs.raw_turn), _turned(keys, inputs.raw_turn)
    d.graph.expand(q)
    d.graph.expand(keys)
    cache = d.caches[True]
    block = block_size(d.context.kv_cache)
    element = block[1] / block[0]
    near = cache_of("k cache", size, cache.cells, size=element, layer=d.layer)
    d.graph.expand(stored(near, view(keys, (size, n)), cache.k_index))
    all_keys, mask, cells = view(near, (size, 1, cache.cells)), cache.mask, cache.cells
    if far is not None:
        more = far[1].shape[0]
        cells += more
        all_keys = fresh((size, 1, cells), all_keys, view(far[0], (size, 1, more)), size=element)
        mask = fresh((cells, n), mask, far[1], size=mask.size)
    q = permuted(view(q, (*q.shape[:3], 1), q.stride[1:]))
    if d.context.flash_on:
        out = fresh((size, heads, n), q, permuted(all_keys), permuted(all_keys), mask)
        out.layer = d.layer
        out = view(out, (size * heads, n))
    else:
        scores = same(fresh((cells, n, heads), permuted(all_keys), q), mask)
        values = fresh((cells, size), permuted(all_keys), size=F16)
        out = fresh((size, n, heads), values, scores)
        out = fresh((size * heads, n), permuted(out))
        out.on_cpu = not d.context.kv_on_gpu
    d.graph.expand(out)
    return _turned(out, inputs.raw_turn) if inputs.raw_turn is not None else out


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """The Hadamard rotation (llama_mul_mat_hadamard)."""
    size = turn.shape[0]
    rows = x.shape[0] * x.shape[1] * x.shape[2] // size
    return view(fresh((size, rows), turn, view(x, (size, rows))), x.shape)
