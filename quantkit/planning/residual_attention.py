"""The graph of layers whose parts attend to the hidden states of earlier layers (src/models/kimi-k3.cpp)."""

from collections.abc import Sequence

from quantkit.planning.attention import mla
from quantkit.planning.drawing import Drawing
from quantkit.planning.feed_forward import feed_forward
from quantkit.planning.kimi_delta import kimi_delta
from quantkit.planning.tensors import F32, Tensor, fresh, same, view


def residual_layers(d: Drawing, x: Tensor, layers: Sequence[int]) -> Tensor:
    """The hidden states with outputs after `layers`, from the embeddings x; the head reads a mixture too."""
    block, stored = int(d.shape.number("attn_res.block_size")), None
    for number in layers:
        d.layer = number
        layer = d.shape.layers[number]
        read = _mixture(d, x, stored, "attn_res_score")
        begins = number % block == 0
        if begins:
            state = view(x, (d.shape.n_embd, 1, d.n))
            stored = state if stored is None else fresh((d.shape.n_embd, stored.shape[1] + 1, d.n), stored, state)
        read = d.norm(read, "attn_norm", layer.tensors)
        d.graph.expand(read)
        mixed = (kimi_delta if layer.is_recurrent else mla)(d, read, layer)
        x = mixed if begins else same(x, mixed)
        read = d.norm(_mixture(d, x, stored, "ffn_res_score"), "ffn_norm", layer.tensors)
        x = same(x, feed_forward(d, read, layer))
    d.layer = None
    x = _mixture(d, x, stored, "output_res_score")
    return fresh((d.shape.n_embd, d.n), x, d.outputs)


def _mixture(d: Drawing, x: Tensor, stored: Tensor | None, scores: str) -> Tensor:
    """What a part reads: a mixture of x and of the states `stored`, (hidden, states, n)."""
    if stored is None:
        return x
    n, count, weight = d.n, stored.shape[1], d.named(f"{scores}.weight")
    of_states = fresh((1, count, n), same(same(stored), weight=weight))
    of_x = fresh((1, n), same(same(x), weight=weight))
    shares = same(fresh((count + 1, n), view(of_states, (count, n)), of_x))
    step = (count + 1) * F32
    of_states, of_x = (fresh((rows, n), view(shares, (rows, n), (step,))) for rows in (count, 1))
    return same(fresh((d.shape.n_embd, n), stored, of_states), same(x, of_x))
