"""The graph of a gated short convolution, as llama.cpp builds it (src/models/lfm2.cpp)."""

from quantkit.planning.drawing import Drawing
from quantkit.planning.recurrent import read_state
from quantkit.planning.shape import Layer, ModelShape
from quantkit.planning.tensors import F32, Tensor, cache_of, fresh, same, view


def convolution_elements(shape: ModelShape) -> int:
    """Float32 elements of a layer's state: the last inputs of its convolution."""
    return (int(shape.number("shortconv.l_cache")) - 1) * shape.n_embd


def short_convolution(d: Drawing, x: Tensor, layer: Layer) -> Tensor:
    """The convolution of a layer with a state, between its two projections."""
    n, width = d.n, d.shape.n_embd
    elements = convolution_elements(d.shape)
    past = elements // width
    state = cache_of("convolution state", elements, size=F32, layer=d.layer)
    last = read_state(d, state, fresh((elements, 1), state, d.state_copies))
    projected = d.linear(layer, "shortconv.in_proj", x)
    b, c, gated = (view(projected, (width, n), (projected.stride[1],)) for _ in range(3))
    inputs = view(same(b, gated), (n, width))
    inputs.stride = (width * F32, F32, width * n * F32, width * n * F32)
    if d.shape.keys.get("attention.causal", True):
        inputs = fresh((past + n, width), view(last, (past, width)), inputs)
    else:
        # zeros stand for the tokens after the last, too
        side = past // 2
        before = fresh((side, width), view(view(last, (past, width)), (side, width), (past * F32,)))
        inputs = fresh((side + n + side, width), fresh((side + n, width), before, inputs))
    tail = view(inputs, (past, width), (inputs.stride[1],))
    d.graph.expand(Tensor(tail.shape, F32, (tail, view(state, state.shape)), root=state))
    convolved = fresh((width, n), inputs)
    convolved.weight = d.named("shortconv.conv.weight")
    out = d.linear(layer, "shortconv.out_proj", same(c, convolved))
    return view(out, out.shape[:2])
