"""The graph of streams that each part of a layer reads and writes, but does not mix (src/models/hy-v4.cpp).

The hidden states are several streams (width, streams, n) in float32; llama.cpp copies them before each sum.
"""

from quantkit.planning.attention import mla
from quantkit.planning.compressed import affine, stream_count
from quantkit.planning.drawing import Drawing
from quantkit.planning.feed_forward import feed_forward
from quantkit.planning.shape import Layer
from quantkit.planning.tensors import F32, Tensor, fresh, matmul, same, view


def independent_layer(d: Drawing, x: Tensor, layer: Layer, _number: int) -> Tensor:
    """A layer over the streams x."""
    read, share = _connected(d, x, "hc_attn")
    x = _added(d, mla(d, d.norm(read, "attn_norm", layer.tensors), layer), x, share)
    read, share = _connected(d, x, "hc_ffn")
    return _added(d, feed_forward(d, d.norm(read, "ffn_norm", layer.tensors), layer), x, share)


def joined_independent(d: Drawing, x: Tensor) -> Tensor:
    """The rows with an output of the streams as one, (width, n)."""
    width, count = d.shape.n_embd, stream_count(d)
    x = view(fresh((width * count, d.n), view(x, (width * count, d.n)), d.outputs), (width, count, d.n))
    mixes = matmul("output_hc_fn.weight", count, same(view(x, (width * count, d.n))))
    return _reduced(d, x, same(same(affine(mixes, "output_hc", (count, d.n)))))


def _connected(d: Drawing, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """What a part reads of the streams x, and how much of its output each gets."""
    width, count, n = d.shape.n_embd, stream_count(d), d.n
    mixes = matmul(d.named(f"{name}_fn.weight"), 2 * count, same(view(x, (width * count, n))))
    read = same(same(affine(mixes, d.named(name), (count, n))))
    share = same(same(same(affine(mixes, d.named(name), (count, n)))))
    return _reduced(d, x, read), share


def _reduced(d: Drawing, x: Tensor, share: Tensor) -> Tensor:
    """The sum of the streams x times their shares (streams, n): (width, n)."""
    width, count = d.shape.n_embd, stream_count(d)
    x = fresh(x.shape[:3], x)
    total: Tensor | None = None
    for _ in range(count):
        part = same(view(x, (width, d.n), (width * count * F32,)), view(share, (1, d.n), (count * F32,)))
        total = part if total is None else same(total, part)
    assert total is not None
    return fresh(total.shape[:2], total)


def _added(d: Drawing, out: Tensor, x: Tensor, share: Tensor) -> Tensor:
    """The streams x with their shares (streams, n) of a part's output (width, n)."""
    width, count = d.shape.n_embd, stream_count(d)
    out, share, x = fresh(out.shape[:2], out), fresh(share.shape[:2], share), fresh(x.shape[:3], x)
    streams: Tensor | None = None
    for number in range(count):
        product = same(out, view(share, (1, d.n), (count * F32,)))
        part = view(same(view(x, (width, d.n), (width * count * F32,)), product), (width, 1, d.n))
        streams = part if streams is None else fresh((width, number + 1, d.n), streams, part)
    assert streams is not None
    return fresh(streams.shape[:3], streams)
