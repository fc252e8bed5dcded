"""The graph of Gated DeltaNet, as llama.cpp builds it (src/models/delta-net-base.cpp, qwen35.cpp, qwen3next.cpp)."""

from quantkit.planning.drawing import Drawing
from quantkit.planning.recurrent import convolution_inputs, copied, read_state, state_elements
from quantkit.planning.shape import Layer
from quantkit.planning.tensors import F32, Tensor, cache_of, fresh, matmul, same, view


def delta_net(d: Drawing, x: Tensor, layer: Layer) -> Tensor:
    """Linear attention of a layer with a state, and its output projection."""
    shape, n = d.shape, d.n
    width, groups = int(shape.number("ssm.state_size")), int(shape.number("ssm.group_count"))
    heads, inner = int(shape.number("ssm.time_step_rank")), int(shape.number("ssm.inner_size"))
    channels = inner + 2 * width * groups
    of_convolution, of_heads = state_elements(shape)
    copies = d.state_copies
    d.graph.expand(x)
    mixed, gate = d.linear(layer, "attn_qkv", x), d.linear(layer, "attn_gate", x)
    beta, decay = _beta_and_decay(d, x, layer, heads, groups)

    convolution = cache_of("convolution state", of_convolution, size=F32, layer=d.layer)
    last = read_state(d, convolution, fresh((of_convolution, 1), convolution, copies))
    inputs = convolution_inputs(d, mixed, convolution, last, channels)

    matrices = cache_of("matrices", of_heads, size=F32, layer=d.layer)
    state = read_state(d, matrices, fresh((of_heads, 1), matrices, copies))
    convolved = fresh((channels, n), inputs)
    convolved.weight = d.named("ssm_conv1d.weight")
    convolved = same(convolved)
    strides = (width * F32, channels * F32)
    queries, keys = (same(same(view(convolved, (width, groups, n), strides))) for _ in range(2))
    if layer.has("ssm_ba.weight") and heads != groups:
        queries, keys = (
            view(fresh((width, heads // groups, groups, n), part), (width, heads, n)) for part in (queries, keys)
        )
    values = view(convolved, (width, heads, n), strides)
    out = fresh((inner, n + width), queries, keys, values, decay, beta, view(state, (width, width, heads)))
    d.graph.expand(copied(matrices, view(out, (of_heads,), (0,))))
    normed = d.norm(view(out, (width, heads, n), (width * F32, inner * F32)), "ssm_norm", layer.tensors)
    gated = same(normed, same(view(gate, (width, heads, n))))
    return matmul(d.named("ssm_out.weight"), layer.rows("ssm_out"), view(gated, (inner, n)))


def _beta_and_decay(d: Drawing, x: Tensor, layer: Layer, heads: int, groups: int) -> tuple[Tensor, Tensor]:
    n = d.n
    if layer.has("ssm_ba.weight"):
        both = d.linear(layer, "ssm_ba", x)
        part = (heads // groups, groups, n)
        strides = (2 * heads // groups * F32, 2 * heads * F32)
        beta = same(fresh(part, view(both, part, strides)))
        decay = fresh((heads, n), view(both, part, strides))
    else:
        beta = same(view(d.linear(layer, "ssm_beta", x), (1, heads, n)))
        decay = view(d.linear(layer, "ssm_alpha", x), (heads, n))
    decay = same(decay, weight=d.named("ssm_dt.bias"))
    decay = same(same(decay), weight=d.named("ssm_a"))
    return view(beta, (1, heads, n)), view(decay, (1, heads, n))
