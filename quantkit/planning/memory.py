"""llama.cpp's memory for one model file and one context: weights, KV cache, compute, output and overhead per device.

Placement is llama.cpp's (src/llama-model.cpp, load_tensors): of the layers and the output, counted as n_layer + 1, the
GPU takes the last `gpu_layers`; the token embedding stays on the CPU. The compute buffers come from the graph itself
(graph, schedule, allocator) and equal what llama.cpp logs; the overhead constants are what a process takes besides.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from gguf import GGMLQuantizationType

from quantkit.gguf.layout import tensor_bytes
from quantkit.gguf.types import row_bytes
from quantkit.planning.allocator import graph_memory
from quantkit.planning.context import Context
from quantkit.planning.graph import prompt_graph, telling_layers
from quantkit.planning.recurrent import state_elements
from quantkit.planning.repack import repacked
from quantkit.planning.schedule import place
from quantkit.planning.shape import ModelShape
from quantkit.planning.short_convolution import convolution_elements
from quantkit.planning.tensors import F32

GPU_OVERHEAD = 512 << 20
"""Assumed for the CUDA context, its libraries and pools, which belong to the driver and appear in no header."""
CPU_OVERHEAD = 25 << 20
"""Measured: address space that llama.cpp takes besides its buffers and the vocabulary."""
BYTES_OF_TOKEN = 820
"""Measured with SmolLM2: its 49,152 tokens and their merges take 38.6 MiB."""

# the pattern of --n-cpu-moe: weights, biases and scales of experts
_EXPERTS = re.compile(r"ffn_(up|down|gate|gate_up)_(ch|)exps\.")
_OF_FIRST_LAYER = frozenset(("per_layer_model_proj.weight", "per_layer_proj_norm.weight"))
_LAYER = re.compile(r"blk\.(\d+)\.")
_CUDA_ROW = 512


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the file: name, numpy shape, type."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return tensor_bytes(self.type, self.shape)

    @cached_property
    def layer(self) -> int | None:
        """The tensor's layer, None outside the layers."""
        match = _LAYER.match(self.name)
        return int(match[1]) if match else None

    @cached_property
    def kind(self) -> str:
        """Its name without the layer."""
        return self.name if self.layer is None else _LAYER.sub("", self.name, count=1)

    @property
    def is_expert(self) -> bool:
        """Whether --n-cpu-moe moves it."""
        return self.layer is not None and _EXPERTS.match(self.kind) is not None

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device. `repacked` is the part of `weights` that llama.cpp repacks for the CPU.

    `output` is the logits buffer. `overhead` is assumed or measured; llama.cpp does not report it.
    """

    name: str
    weights: int = 0
    repacked: int = 0
    kv: int = 0
    compute: int = 0
    output: int = 0
    overhead: int = 0

    @property
    def buffers(self) -> int:
        """The bytes that llama.cpp reports."""
        return self.weights + self.kv + self.compute + self.output

    @property
    def total(self) -> int:
        """Bytes of all buffers and the overhead."""
        return self.buffers + self.overhead


@dataclass(frozen=True)
class Memory:
    """The memory of one run. `gpu` is None without a GPU."""

    cpu: DeviceMemory
    gpu: DeviceMemory | None = None
    context: Context = field(default_factory=Context)

    @property
    def devices(self) -> tuple[DeviceMemory, ...]:
        """The CPU, and the GPU if there is one."""
        return (self.cpu,) if self.gpu is None else (self.cpu, self.gpu)

    @property
    def total(self) -> int:
        """Bytes of all devices."""
        return sum(device.total for device in self.devices)


def plan_memory(
    shape: ModelShape,
    tensors: Sequence[PlannedTensor],
    context: Context,
    *,
    has_gpu: bool = False,
    cpu_features: frozenset[str] = frozenset(),
    compute: Mapping[str, int] | None = None,
) -> Memory:
    """The memory of a run. `has_gpu`: llama.cpp finds a GPU and uses it even without layers on it.

    `compute`: known or estimated compute buffers in bytes, by device; None computes them. `cpu_features`: flags of
    /proc/cpuinfo that decide which weights llama.cpp repacks; empty for none.
    """
    where = weight_devices(shape, tensors, context if has_gpu else Context(gpu_layers=0))
    weights = {"CPU": 0, "GPU": 0}
    repacked_bytes = 0
    for tensor in tensors:
        for device in where[tensor.name]:
            weights[device] += tensor.nbytes if device == "CPU" else _on_gpu(tensor)
            if device == "CPU" and repacked(tensor.name, tensor.type, tensor.shape, cpu_features):
                repacked_bytes += tensor.nbytes
    kv = kv_bytes(shape, context if has_gpu else Context(**{**vars(context), "gpu_layers": 0}))
    if compute is None:
        compute = compute_bytes(shape, tensors, context, has_gpu=has_gpu)
    cpu = DeviceMemory(
        "CPU",
        weights=weights["CPU"],
        repacked=repacked_bytes,
        kv=kv["CPU"],
        compute=compute.get("CPU", 0),
        output=4 * shape.n_vocab,
        overhead=CPU_OVERHEAD + BYTES_OF_TOKEN * shape.n_vocab,
    )
    if not has_gpu:
        return Memory(cpu, None, context)
    gpu = DeviceMemory(
        "GPU", weights=weights["GPU"], kv=kv["GPU"], compute=compute.get("GPU", 0), overhead=GPU_OVERHEAD
    )
    return Memory(cpu, gpu, context)


def first_gpu_layer(shape: ModelShape, context: Context) -> int:
    """The first layer on the GPU; n_layer stands for the output, n_layer + 1 for none."""
    return max(shape.n_layer + 1 - context.gpu_layers, 0)


def weight_devices(
    shape: ModelShape, tensors: Iterable[PlannedTensor], context: Context
) -> Mapping[str, tuple[str, ...]]:
    """The devices of each tensor, by name; a tied embedding is on the CPU and, as the output, on the GPU."""
    start = first_gpu_layer(shape, context)
    tied = "output.weight" not in shape.tensors
    devices: dict[str, tuple[str, ...]] = {}
    for tensor in tensors:
        layer = tensor.layer
        if layer is not None and layer >= len(shape.trunk):
            devices[tensor.name] = ()  # llama.cpp loads layers for a later token only on request (load_mtp)
        elif layer is not None:
            stays = layer < start or (layer < context.cpu_moe and tensor.is_expert)
            devices[tensor.name] = ("CPU",) if stays else ("GPU",)
        elif tensor.name in _OF_FIRST_LAYER:
            devices[tensor.name] = ("CPU",) if start > 0 else ("GPU",)
        elif tensor.name.startswith(("output", "altup_")) or tensor.name == f"{shape.traits.last_norm}.weight":
            devices[tensor.name] = ("GPU" if shape.n_layer >= start else "CPU",)
        elif tensor.name == "token_embd.weight" and tied and shape.n_layer >= start:
            devices[tensor.name] = ("CPU", "GPU")
        else:
            devices[tensor.name] = ("CPU",)
    return devices


def kv_bytes(shape: ModelShape, context: Context) -> dict[str, int]:
    """Bytes of the key-value cache and of recurrent states on each device, layer by layer.

    Sources: the constructors of llama_kv_cache and llama_memory_recurrent, for one sequence.
    """
    start = first_gpu_layer(shape, context)
    kind = context.kv_cache
    sizes = {"CPU": 0, "GPU": 0}
    for number, layer in enumerate(shape.trunk):
        device = "GPU" if number >= start else "CPU"
        if layer.is_recurrent:
            elements = convolution_elements(shape) if layer.has_short_convolution else sum(state_elements(shape))
            sizes[device] += F32 * elements
        if layer.shared_from is not None or not layer.has_attention:
            continue
        cells = context.window_cells(shape.window) if layer.slides else context.cells
        # without flash attention values are transposed, and every layer is as large as the widest
        values = layer.n_head_kv * layer.head_v if context.flash_on else shape.widest_values
        row = row_bytes(kind, layer.n_head_kv * layer.head_k) + (row_bytes(kind, values) if values else 0)
        sizes[device] += row * cells
    return sizes


def compute_bytes(
    shape: ModelShape, tensors: Sequence[PlannedTensor], context: Context, *, has_gpu: bool
) -> dict[str, int]:
    """Bytes of compute buffer on each device, for the largest batch."""
    if not has_gpu:
        return graph_memory(prompt_graph(shape, context))
    where = weight_devices(shape, tensors, context)
    sizes = _largest_of_a_kind(tensors)
    if "output.weight" not in sizes:
        sizes["output.weight"] = sizes["token_embd.weight"]
    devices = {name: ("GPU" if "GPU" in places else "CPU") for name, places in where.items()}
    start = first_gpu_layer(shape, context)
    devices["token_embd.weight"] = "CPU"
    devices["output.weight"] = "GPU" if shape.n_layer >= start else "CPU"
    kinds = [(number >= start, number < context.cpu_moe) for number in range(shape.n_layer)]
    graph = prompt_graph(shape, context, telling_layers(shape, kinds))
    placed, device = place(graph, devices, sizes, start, offload=context.op_offload)
    return graph_memory(placed, device)


def _largest_of_a_kind(tensors: Sequence[PlannedTensor]) -> dict[str, int]:
    """Bytes by tensor name; a tensor of a layer counts as the largest of its kind, because types vary by layer."""
    largest: dict[str, int] = {}
    for tensor in tensors:
        largest[tensor.kind] = max(largest.get(tensor.kind, 0), tensor.nbytes)
    return {tensor.name: largest[tensor.kind] for tensor in tensors}


def _on_gpu(tensor: PlannedTensor) -> int:
    """CUDA pads the last row of a quantized matrix to 512 elements (ggml_backend_cuda_buffer_type_get_alloc_size)."""
    short = -tensor.shape[-1] % _CUDA_ROW
    quantized = tensor.type not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
    return tensor.nbytes + (row_bytes(tensor.type, short) if short and quantized else 0)
