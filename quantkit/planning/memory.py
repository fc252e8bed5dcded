"""llama.cpp's memory for one model file and one context: weights, KV cache, compute, output and overhead per device.

Placement is llama.cpp's (devices.py). The compute buffers come from the graph itself (graph, schedule, allocator) and
equal what llama.cpp logs; the overhead constants are what a process takes besides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from quantkit.gguf.types import row_bytes
from quantkit.planning.allocator import graph_memory
from quantkit.planning.compressed import compressed_bytes
from quantkit.planning.context import Context
from quantkit.planning.devices import CPU, cache_devices, gpu_names, layer_devices, weight_devices
from quantkit.planning.flash import is_flash_open, with_flash_decided
from quantkit.planning.graph import prompt_graph, telling_layers
from quantkit.planning.planned_tensors import PlannedTensor, PlannedTensors
from quantkit.planning.recurrent import state_elements
from quantkit.planning.schedule import ScheduleOptions, place
from quantkit.planning.shape import Layer, ModelShape
from quantkit.planning.short_convolution import convolution_elements
from quantkit.planning.tensors import F32
from quantkit.planning.time_mix import rwkv_states

GPU_OVERHEAD = 512 << 20
"""Assumed for the CUDA context, its libraries and pools, which belong to the driver and appear in no header."""
CPU_OVERHEAD = 25 << 20
"""Measured: address space that llama.cpp takes besides its buffers and the vocabulary."""
BYTES_OF_TOKEN = 820
"""Measured with SmolLM2: its 49,152 tokens and their merges take 38.6 MiB."""
PIPELINE_COPIES = 4
"""llama.cpp's GGML_SCHED_MAX_COPIES."""

_SMALL_BATCH = 32


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
    """The memory of one run. `gpus` is empty without a GPU."""

    cpu: DeviceMemory
    gpus: tuple[DeviceMemory, ...] = ()
    context: Context = field(default_factory=Context)

    @property
    def gpu(self) -> DeviceMemory | None:
        """The first GPU, or None."""
        return self.gpus[0] if self.gpus else None

    @property
    def devices(self) -> tuple[DeviceMemory, ...]:
        """The CPU, and the GPUs if there are any."""
        return (self.cpu, *self.gpus)

    @property
    def compute(self) -> dict[str, int]:
        """Bytes of compute buffer, by device."""
        return {device.name: device.compute for device in self.devices}

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
    # without a GPU no layer is on one
    context = _decided(shape, tensors, context) if has_gpu else context
    placed = context if has_gpu else replace(context, gpu_layers=0, split=(), cpu_moe=0)
    names = gpu_names(max(len(placed.split), 1)) if has_gpu else ()
    tensors = PlannedTensors.of(tensors)
    where = weight_devices(shape, tensors.one_of_each, placed)
    weights = dict.fromkeys((CPU, *names), 0)
    repacked_bytes = 0
    for group, repacked in zip(tensors.groups, tensors.repacked(cpu_features), strict=True):
        for device in where[group.first.name]:
            weights[device] += group.nbytes if device == CPU else group.gpu_nbytes
            if device == CPU:
                repacked_bytes += repacked
    kv = kv_bytes(shape, placed)
    if compute is None:
        compute = compute_bytes(shape, tensors, context, has_gpu=has_gpu)
    cpu = DeviceMemory(
        CPU,
        weights=weights[CPU],
        repacked=repacked_bytes,
        kv=kv[CPU],
        compute=compute.get(CPU, 0),
        output=output_bytes(shape, context),
        overhead=CPU_OVERHEAD + BYTES_OF_TOKEN * shape.n_vocab,
    )
    gpus = tuple(
        DeviceMemory(
            name, weights=weights[name], kv=kv.get(name, 0), compute=compute.get(name, 0), overhead=GPU_OVERHEAD
        )
        for name in names
    )
    return Memory(cpu, gpus, context)


def output_bytes(shape: ModelShape, context: Context) -> int:
    """Bytes of the output buffer: logits of one token, or of an encoder logits and embeddings of all tokens.

    llama.cpp makes room for an encoder's logits although no head computes them (llama_context::output_reserve).
    """
    if shape.traits.encoder:
        return F32 * (shape.n_vocab + shape.n_embd) * context.n_ctx
    return F32 * shape.n_vocab


def kv_bytes(shape: ModelShape, context: Context) -> dict[str, int]:
    """Bytes of the key-value cache and of recurrent states on each device."""
    sizes = {CPU: 0, "GPU": 0} if len(context.split) < 2 else dict.fromkeys((CPU, *gpu_names(len(context.split))), 0)
    for device, size in zip(cache_devices(shape, context), kv_of_layers(shape, context), strict=True):
        sizes[device] += size
    return sizes


def kv_of_layers(shape: ModelShape, context: Context) -> list[int]:
    """Bytes of the key-value cache and of the recurrent state of each layer.

    Sources: the constructors of llama_kv_cache and llama_memory_recurrent, for one sequence.
    """
    kind = context.kv_cache

    @cache
    def row(keys: int, values: int) -> int:
        return sum(row_bytes(kind, width) for width in (keys, values) if width)

    sizes = [0] * shape.n_layer
    for number, layer in enumerate(shape.layers if shape.traits.later_tokens_cached else shape.trunk):
        if shape.traits.compressed:
            sizes[number] = compressed_bytes(shape, layer, context)
            continue
        sizes[number] += state_bytes(shape, layer)
        cached = not shape.traits.encoder or shape.traits.unused_cache
        if not cached or layer.shared_from is not None:
            continue
        if not layer.has_attention and (layer.n_head_kv or any(other.is_recurrent for other in shape.trunk)):
            continue
        cells = context.window_cells(shape.window) if layer.slides else context.cells
        # without flash attention values are transposed, and every layer is as large as the widest, even one without
        # attention in a model that has no states
        values = layer.n_head_kv * layer.head_v if context.flash_on else shape.widest_values
        sizes[number] += row(layer.n_head_kv * layer.head_k, values) * cells
        if layer.has("indexer.attn_k.weight"):
            sizes[number] += row_bytes(kind, shape.index_width) * cells
        if layer.has("indexer.k_proj.weight"):
            # this cache has values too, which nothing reads
            sizes[number] += row(shape.index_width, layer.head_v) * cells
    return sizes


def state_bytes(shape: ModelShape, layer: Layer) -> int:
    """Bytes of the recurrent state of a layer; 0 for a layer of attention alone."""
    if not layer.is_recurrent:
        return 0
    if layer.has_time_mix:
        return F32 * sum(rwkv_states(shape))
    return F32 * (convolution_elements(shape) if layer.has_short_convolution else sum(state_elements(shape)))


def compute_bytes(
    shape: ModelShape, tensors: Sequence[PlannedTensor], context: Context, *, has_gpu: bool
) -> dict[str, int]:
    """Bytes of compute buffer on each device, for the largest batch."""
    if not has_gpu:
        return graph_memory(prompt_graph(shape, context))
    sizes = dict(PlannedTensors.of(tensors).largest_of_a_kind)
    if "output.weight" not in sizes:
        sizes["output.weight"] = sizes["token_embd.weight"]
    devices = product_devices(shape, tensors, context)
    graph = prompt_graph(shape, context, _drawn_layers(shape, context))
    names = gpu_names(max(len(context.split), 1))
    options = ScheduleOptions(names, context.op_offload, _copies(shape, context), norm_devices(shape, context))
    placed, device = place(graph, devices, sizes, cache_devices(shape, context), options)
    return graph_memory(placed, device)


def norm_devices(shape: ModelShape, context: Context) -> Sequence[str]:
    """The device of each layer if llama.cpp keeps norms there: in small batches, and with all layers on GPUs."""
    if context.tokens >= _SMALL_BATCH and context.gpu_layers <= shape.n_layer:
        return ()
    return layer_devices(shape, context)


def _decided(shape: ModelShape, tensors: Sequence[PlannedTensor], context: Context) -> Context:
    if not is_flash_open(shape, context):
        return context
    return with_flash_decided(shape, context, product_devices(shape, tensors, context), _drawn_layers(shape, context))


def product_devices(shape: ModelShape, tensors: Sequence[PlannedTensor], context: Context) -> dict[str, str]:
    """The device of each weight as an operand; of a tied embedding, that of the output is named output.weight."""
    tensors = PlannedTensors.of(tensors)
    where = weight_devices(shape, tensors.one_of_each, context)
    devices: dict[str, str] = {}
    for group in tensors.groups:
        places = where[group.first.name]
        devices.update(dict.fromkeys(group.names, places[-1] if places else CPU))
    return {**devices, "token_embd.weight": CPU, "output.weight": layer_devices(shape, context)[-1]}


def _drawn_layers(shape: ModelShape, context: Context) -> list[int]:
    """Layers that are enough for the memory of a graph over several devices."""
    devices = layer_devices(shape, context)
    return telling_layers(shape, [(devices[number], number < context.cpu_moe) for number in range(shape.n_layer)])


def _copies(shape: ModelShape, context: Context) -> int:
    """Copies of the inputs of a GPU: several GPUs that hold the whole model work on four batches at once.

    Source: llama_context's constructor (pipeline_parallel) and GGML_SCHED_MAX_COPIES.
    """
    whole = context.gpu_layers > shape.n_layer and not context.cpu_moe and context.kv_on_gpu
    return PIPELINE_COPIES if len(context.split) > 1 and whole else 1
