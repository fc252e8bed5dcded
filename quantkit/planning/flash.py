"""Where llama.cpp turns flash attention off by itself: if an operation of it is not on the device of its layer.

A layer with a state brings operations on its own device before those of the layer before it. So attention at the
border between two devices may run on the wrong one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from quantkit.planning.context import Context
from quantkit.planning.devices import CPU, cache_devices, gpu_names, layer_devices
from quantkit.planning.graph import prompt_graph
from quantkit.planning.schedule import ScheduleOptions, place
from quantkit.planning.shape import ModelShape


def is_flash_open(shape: ModelShape, context: Context) -> bool:
    """Whether llama.cpp may turn flash attention off for this placement; only then `with_flash_decided` looks.

    A quantized cache needs flash attention; llama.cpp then stops, and the context stays as it is.
    """
    if context.flash is not None or context.kv_type != "f16" or not context.kv_on_gpu:
        return False
    is_hybrid = any(layer.is_recurrent for layer in shape.trunk) and any(layer.has_attention for layer in shape.trunk)
    return is_hybrid and CPU in layer_devices(shape, context)


def with_flash_decided(
    shape: ModelShape, context: Context, weights: Mapping[str, str], layers: Sequence[int]
) -> Context:
    """`context` of a placement that is open, without flash attention if llama.cpp turns it off.

    `weights`: device of each weight. `layers`: the layers of the graph. Source: resolve_fused_ops of llama_context.
    """
    devices = layer_devices(shape, context)
    # the decision is taken for one token, whose products run where their weights are
    options = ScheduleOptions(gpu_names(max(len(context.split), 1)), offload=False, norms=devices)
    graph = prompt_graph(shape, context, layers)
    placed, device = place(graph, weights, dict.fromkeys(weights, 0), cache_devices(shape, context), options)
    wrong = any(
        node.kind == "op" and node.layer is not None and device.get(id(node), CPU) != devices[node.layer]
        for node in placed.nodes
    )
    return replace(context, flash=False) if wrong else context
