"""The graph of per-layer embeddings: each token has a vector for each layer (src/models/gemma4.cpp, gemma3n.cpp)."""

from quantkit.planning.drawing import Drawing
from quantkit.planning.shape import Layer
from quantkit.planning.tensors import I32, Tensor, fresh, leaf, matmul, permuted, same, view


def layer_inputs(d: Drawing, x: Tensor) -> Tensor:
    """The vectors of all layers, (width, n, n_layer): rows of a table plus a projection of the embeddings `x`."""
    rows = d.shape.tensors["per_layer_token_embd.weight"][-1]
    sizes = (rows // d.shape.n_layer, d.shape.n_layer, d.n)
    table = fresh((rows, d.n), leaf("tokens of layers", d.n, size=I32))
    table.weight = "per_layer_token_embd.weight"
    table = d.graph.expand(same(view(table, sizes)))
    projected = view(same(matmul("per_layer_model_proj.weight", rows, x)), sizes)
    projected = d.norm(projected, "per_layer_proj_norm", d.shape.tensors)
    both = permuted(same(same(projected, table)))
    return fresh(both.shape[:3], both)


def layer_input(d: Drawing, number: int) -> Tensor:
    """The vectors of one layer, (width, n)."""
    assert d.layer_inputs is not None
    return view(d.layer_inputs, d.layer_inputs.shape[:2], (d.layer_inputs.stride[1],))


def with_layer_input(d: Drawing, x: Tensor, layer: Layer, number: int) -> Tensor:
    """The hidden states plus a projection of the layer's vectors, which they gate."""
    gate = same(d.linear(layer, "inp_gate", x))
    out = d.linear(layer, "proj", same(gate, layer_input(d, number)))
    return same(x, d.norm(out, "post_norm", layer.tensors))
