"""The graph of AltUp, LAuReL and sparse activations, as llama.cpp builds it (src/models/gemma3n.cpp).

The hidden states are several streams (width, n, streams). A layer predicts all of them from its input and computes the
active one. It corrects the others by the error of that prediction.
"""

from quantkit.planning.attention import attention
from quantkit.planning.drawing import Drawing
from quantkit.planning.layer_inputs import layer_input
from quantkit.planning.shape import Layer
from quantkit.planning.tensors import F32, Tensor, fresh, matmul, permuted, product, same, view


def spread(d: Drawing, x: Tensor) -> Tensor:
    """The streams of the embeddings x (width, n)."""
    target = _magnitude(x)
    width, n, count = x.shape[0], d.n, _streams(d)
    added = matmul("altup_proj.weight", width, fresh((width, n, count - 1), x))
    added = same(same(added, target), _magnitude(added))
    return fresh((width, n, count), x, added)


def merged(d: Drawing, x: Tensor) -> Tensor:
    """The rows with an output of the mean of the streams."""
    width, n, count = x.shape[0], d.n, _streams(d)
    target = _magnitude(_stream(x))
    others = matmul("altup_unembd_proj.weight", width, view(x, (width, n, count - 1), (x.stride[1],)))
    others = same(same(others, target), _magnitude(others))
    total = _stream(x)
    for _ in range(count - 1):
        total = same(total, _stream(others))
    return fresh((width, n), same(total), d.outputs)


def altup_layer(d: Drawing, x: Tensor, layer: Layer, number: int) -> Tensor:
    """A layer over the streams x."""
    width, n, count = x.shape[0], d.n, _streams(d)
    predictions = _predicted(d, x, layer)
    active = _stream(predictions)
    normed = d.norm(active, "attn_norm", layer.tensors)
    low = d.linear(layer, "laurel_r", d.linear(layer, "laurel_l", normed))
    low = same(d.norm(low, "laurel_post_norm", layer.tensors), normed)
    out = d.norm(attention(d, normed, layer), "post_attention_norm", layer.tensors)
    joined = same(same(same(out, active), low))
    fed = _feed_forward(d, d.norm(joined, "ffn_norm", layer.tensors), layer, number)
    fed = same(d.norm(fed, "post_ffw_norm", layer.tensors), joined)

    corrected = _corrected(d, predictions, fed, layer)
    first = same(_stream(corrected), weight=d.named("altup_correct_scale.weight"))
    gate = same(same(d.linear(layer, "inp_gate", first)), layer_input(d, number))
    added = d.norm(d.linear(layer, "proj", gate), "post_norm", layer.tensors)
    others = same(view(corrected, (width, n, count - 1), (corrected.stride[1],)), added)
    return fresh((width, n, count), _stream(corrected), others)


def _streams(d: Drawing) -> int:
    return int(d.shape.number("altup.num_inputs"))


def _stream(x: Tensor) -> Tensor:
    """One stream, (width, n)."""
    return view(x, x.shape[:2], (x.stride[1],))


def _magnitude(x: Tensor) -> Tensor:
    return same(fresh((1, *x.shape[1:]), same(x)))


def _modalities(d: Drawing, x: Tensor, layer: Layer) -> Tensor:
    return same(d.linear(layer, "altup_router", same(d.norm(x, "altup_router_norm", layer.tensors))))


def _predicted(d: Drawing, x: Tensor, layer: Layer) -> Tensor:
    width, n, count = x.shape[0], d.n, _streams(d)
    coefficients = d.linear(layer, "altup_predict_coef", _modalities(d, _stream(x), layer))
    by_stream = fresh((count, width, n), view(x, (count, width, n), (F32, width * F32)))
    mixed = product(by_stream, view(coefficients, (count, count, n)))
    return same(fresh((width, n, count), permuted(mixed)), x)


def _corrected(d: Drawing, predictions: Tensor, activated: Tensor, layer: Layer) -> Tensor:
    width, n, count = predictions.shape[0], d.n, _streams(d)
    modalities = _modalities(d, activated, layer)
    innovation = same(activated, _stream(predictions))
    coefficients = same(d.linear(layer, "altup_correct_coef", modalities))
    by_stream = fresh((1, n, count), view(coefficients, (n, count), (count * F32,)))
    return same(same(fresh((width, n, count), innovation), by_stream), predictions)


def _feed_forward(d: Drawing, x: Tensor, layer: Layer, number: int) -> Tensor:
    up, gate = d.linear(layer, "ffn_up", x), d.linear(layer, "ffn_gate", x)
    if number < d.shape.traits.sparse_layers:
        mean = fresh((1, d.n), gate)
        deviation = same(same(fresh((1, d.n), same(same(gate, mean)))))
        gate = same(same(gate, same(mean, same(deviation))))
    return d.linear(layer, "ffn_down", same(up, same(gate)))
