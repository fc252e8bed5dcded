"""The device of each layer, tensor and cache, with one GPU or several.

Source: load_tensors of src/llama-model.cpp. The layers and the output count as n_layer + 1; the GPUs take the last
`gpu_layers` of them. With several GPUs, each takes consecutive layers in the order of the devices. The last GPU in use
has the output. The token embedding stays on the CPU; its norm is on the device of the first layer.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from quantkit.planning.context import Context
from quantkit.planning.shape import ModelShape

if TYPE_CHECKING:
    from quantkit.planning.planned_tensors import PlannedTensor

CPU = "CPU"
_OF_FIRST_LAYER = ("per_layer_model_proj.", "per_layer_proj_norm.", "token_embd_norm.")
_WITH_OUTPUT = ("output", "enc.output", "dec.output", "altup_", "cls")


def gpu_names(count: int) -> tuple[str, ...]:
    """The names of GPUs in a plan: GPU, or GPU0, GPU1 and so on."""
    return ("GPU",) if count == 1 else tuple(f"GPU{number}" for number in range(count))


def first_gpu_layer(shape: ModelShape, context: Context) -> int:
    """The first layer on a GPU; n_layer stands for the output, n_layer + 1 for none."""
    return max(shape.n_layer + 1 - context.gpu_layers, 0)


def layer_devices(shape: ModelShape, context: Context) -> Sequence[str]:
    """The device of each layer; the last entry is the output's."""
    start = first_gpu_layer(shape, context)
    on_gpu = shape.n_layer + 1 - start
    if len(context.split) < 2:
        return [CPU] * start + ["GPU"] * on_gpu
    names, ends = gpu_names(len(context.split)), list(accumulate(context.split))
    # the fraction of the layers before a layer, compared with the fractions at which the devices end
    devices = [
        next(name for name, end in zip(names, ends, strict=True) if number * ends[-1] < end * on_gpu)
        for number in range(on_gpu)
    ]
    return [CPU] * start + devices


def cache_devices(shape: ModelShape, context: Context) -> Sequence[str]:
    """The device of the KV cache of each layer."""
    devices = layer_devices(shape, context)[:-1]
    return devices if context.kv_on_gpu else [CPU] * len(devices)


def weight_devices(
    shape: ModelShape, tensors: "Iterable[PlannedTensor]", context: Context
) -> Mapping[str, tuple[str, ...]]:
    """The devices of each tensor, by name; a tied embedding is on the CPU and, as the output, on a GPU."""
    layers = layer_devices(shape, context)
    output, trunk = layers[-1], len(shape.trunk)
    # an encoder has no output head
    tied = "output.weight" not in shape.tensors and not shape.traits.encoder
    devices: dict[str, tuple[str, ...]] = {}
    for tensor in tensors:
        layer = tensor.layer
        if layer is not None and layer >= trunk:
            devices[tensor.name] = ()  # llama.cpp loads layers for a later token only on request (load_mtp)
        elif layer is not None:
            devices[tensor.name] = (CPU,) if layer < context.cpu_moe and tensor.is_expert else (layers[layer],)
        elif tensor.name.startswith(_WITH_OUTPUT) or tensor.name == f"{shape.traits.last_norm}.weight":
            devices[tensor.name] = (output,)
        elif tensor.name.startswith(_OF_FIRST_LAYER):
            devices[tensor.name] = (layers[0],)
        elif tensor.name == "token_embd.weight" and tied and output != CPU:
            devices[tensor.name] = (CPU, output)
        else:
            devices[tensor.name] = (CPU,)
    return devices
