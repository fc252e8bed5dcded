"""The graph of Kimi Delta Attention (llama.cpp, src/models/kimi-linear.cpp, kimi-k3.cpp, bailingmoe3.cpp)."""

from quantkit.planning.drawing import Drawing
from quantkit.planning.recurrent import convolution_inputs, copied, read_state, state_elements
from quantkit.planning.shape import Layer
from quantkit.planning.tensors import F32, Tensor, cache_of, fresh, same, view


def kimi_delta(d: Drawing, x: Tensor, layer: Layer) -> Tensor:
    """Linear attention with a decay for each channel, and its output projection."""
    n, heads, width = d.n, layer.n_head, int(d.shape.number("kda.head_dim"))
    inner = heads * width
    of_convolutions, of_heads = state_elements(d.shape)
    if layer.has("ssm_f_b.weight"):
        # the graph of bailingmoe3 reads the state before it norms the hidden states
        d.graph.expand(x)
    state = cache_of("convolution state", of_convolutions, size=F32, layer=d.layer)
    last = read_state(d, state, fresh((of_convolutions, 1), state, d.state_copies))
    queries, keys, values = (_convolved(d, x, layer, part, state, last) for part in "qkv")
    by_head = (width, heads, n)

    decay = d.linear(layer, "ssm_f_a", x)
    if layer.has("ssm_f_b.weight"):
        decay = d.linear(layer, "ssm_f_b", decay)
    decay = same(decay, weight=d.named("ssm_dt.bias"))
    if d.shape.keys.get("kda.gate_lower_bound") is not None:
        decay = same(same(same(same(view(decay, by_head), weight=d.named("ssm_a")))))
    else:
        decay = same(view(same(decay), by_head), weight=d.named("ssm_a"))
    beta = same(view(d.linear(layer, "ssm_beta", x), (1, heads, n)))

    matrices = cache_of("matrices", of_heads, size=F32, layer=d.layer)
    before = read_state(d, matrices, fresh((of_heads, 1), matrices, d.state_copies))
    queries, keys = (same(same(view(part, by_head))) for part in (queries, keys))
    out = fresh(
        (inner, n + width), queries, keys, view(values, by_head), decay, beta, view(before, (width, width, heads))
    )
    d.graph.expand(copied(matrices, view(out, (of_heads,), (0,))))
    copied_out = fresh(by_head, view(out, by_head, (width * F32, inner * F32)))
    normed = d.norm(view(copied_out, by_head), "ssm_norm", layer.tensors)
    gate = d.linear(layer, "ssm_g" if layer.has("ssm_g.weight") else "ssm_g_a", x)
    if layer.has("ssm_g_b.weight"):
        gate = d.linear(layer, "ssm_g_b", gate)
    gated = same(normed, same(view(gate, by_head)))
    return d.linear(layer, "attn_output", fresh((inner, n), gated))


def _convolved(d: Drawing, x: Tensor, layer: Layer, part: str, state: Tensor, last: Tensor) -> Tensor:
    """Queries, keys or values after their convolution."""
    projected = d.linear(layer, f"attn_{part}", x)
    inputs = convolution_inputs(d, projected, state, last, projected.shape[0])
    out = fresh(projected.shape, inputs)
    out.weight = d.named(f"ssm_conv1d_{part}.weight")
    return same(view(out, projected.shape))
