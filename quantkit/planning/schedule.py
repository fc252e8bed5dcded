"""The device of each operation when a model is split over CPU and GPU, and the copies between devices.

Follows ggml_backend_sched_split_graph (ggml/src/ggml-backend.cpp). A prompt's matrix products run on the first GPU even
with weights on the CPU. Those are copied, one at a time, into the GPU's compute buffer.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantkit.planning.tensors import Graph, Stride, Tensor

_OFFLOADED_FROM = 32
"""Rows of a batch from which CUDA computes an operation whose weight is on the CPU."""
_COPY = "copy of "


@dataclass(frozen=True)
class ScheduleOptions:
    """`gpus`: names of the GPUs, in order. `offload`: whether a GPU computes with weights on the CPU.

    `copies`: how many batches several GPUs work on at once, each with its own copy of a device's inputs. `norms`: the
    device of each layer, where llama.cpp keeps the norms of a layer on it (graph_get_cb of llama_context); else empty.
    """

    gpus: tuple[str, ...] = ("GPU",)
    offload: bool = True
    copies: int = 1
    norms: Sequence[str] = ()


def place(
    graph: Graph,
    weights: Mapping[str, str],
    sizes: Mapping[str, int],
    caches: Sequence[str],
    options: ScheduleOptions = ScheduleOptions(),
) -> tuple[Graph, dict[int, str]]:
    """The graph with copies between devices, and the device of each tensor by id.

    `weights`: device of each weight by name, `sizes` their bytes; `caches`: device of the cache of each layer. Changes
    `graph`'s nodes.
    """
    device = _assign(graph, weights, caches, options)
    out = Graph()
    out.leaves = graph.leaves
    copies: dict[tuple[int, str], Tensor] = {}
    weight_copies = 0
    here = ""
    pending: list[Tensor] = []
    split_at = 0
    for node in graph.nodes:
        if is_view(node):
            out.nodes.append(node)
            continue
        on = device[id(node)]
        weight = node.weight
        foreign = weight is not None and on != "CPU" and weights.get(weight, on) == "CPU"
        if on != here or (foreign and weight_copies):
            here, split_at, weight_copies = on, len(out.nodes), 0
        for i, parent in enumerate(node.src):
            if device.get(id(parent.root or parent), "CPU") == on:
                continue
            key = (id(parent), on)
            if key not in copies:
                copies[key] = copy = _copy_of(parent, options.copies)
                device[id(copy)] = on
                # kept until the copy is made, and the copy has its place from the start of the split
                pending = [_depends(parent), copy]
                out.nodes[split_at:split_at] = pending
                split_at += len(pending)
            node.src = (*node.src[:i], copies[key], *node.src[i + 1 :])
        if foreign and weight is not None:
            copy = Tensor((sizes[weight], 1, 1, 1), 1, name=f"{_COPY}{weight}")
            device[id(copy)] = on
            out.nodes.insert(split_at, copy)
            split_at += 1
            weight_copies += 1
            node.src = (*node.src, copy)
        out.nodes.append(node)
    if options.copies > 1:
        _repeat_inputs(graph, options.copies)
    return out, device


def _copy_of(tensor: Tensor, batches: int) -> Tensor:
    """A copy on another device, for each of the batches that are worked on at once."""
    # a copy of a part has the gaps of the whole (ggml_dup_tensor_layout)
    stride = _scaled(tensor.stride, batches)
    copy = Tensor(tensor.shape, tensor.size * batches, name=f"{_COPY}{tensor.name}", stride=stride)
    copy.kept = batches > 1
    return copy


def _repeat_inputs(graph: Graph, batches: int) -> None:
    """Make the inputs of the graph as large as those of all batches."""
    for leaf in graph.leaves:
        if leaf.kind == "input":
            leaf.size *= batches
            leaf.stride = _scaled(leaf.stride, batches)
            leaf.kept = True


def _assign(
    graph: Graph, weights: Mapping[str, str], caches: Sequence[str], options: ScheduleOptions
) -> dict[int, str]:
    offloaded_from = _OFFLOADED_FROM if options.offload else sys.maxsize
    known: dict[int, str] = {id(leaf): "CPU" for leaf in graph.leaves if leaf.kind == "input"}
    for leaf in graph.leaves:
        if leaf.kind == "cache":
            known[id(leaf)] = caches[leaf.layer or 0]
    chosen: dict[int, str | None] = {}
    for node in graph.nodes:
        weight = node.weight
        device: str | None = None
        if node.on_cpu:
            device = "CPU"
        elif node.norm_of is not None and options.norms:
            device = options.norms[node.norm_of]
        elif node.root is not None and node.root.kind == "cache" and not is_view(node):
            device = known[id(node.root)]
        elif weight is not None:
            device = weights.get(weight, "CPU")
            rows = node.shape[1] * node.shape[2] * node.shape[3]
            if device == "CPU" and weight != "token_embd.weight" and rows >= offloaded_from:
                device = options.gpus[0]
        chosen[id(node)] = device
    order = [node for node in graph.nodes if not is_view(node)]
    for nodes, only_gpu in ((order, True), (order[::-1], True), (order, False), (order[::-1], False)):
        current: str | None = None
        for node in nodes:
            device = chosen[id(node)]
            if device is None:
                chosen[id(node)] = current
            else:
                current = None if only_gpu and device == "CPU" else device
    for node in graph.nodes:
        if not is_view(node):
            known[id(node)] = chosen[id(node)] or "CPU"
            # a constant is on the device of the operation that takes it
            known.update({id(parent): known[id(node)] for parent in node.src if parent.kind == "constant"})
    return known


def _scaled(stride: Stride, copies: int) -> Stride:
    a, b, c, d = stride
    return (a * copies, b * copies, c * copies, d * copies)


def is_view(node: Tensor) -> bool:
    """Whether a node is a view that computes nothing; a store into a cache is a view that computes."""
    return node.root is not None and len(node.src) == 1


def is_copy(node: Tensor) -> bool:
    """Whether a node of a placed graph is a copy of a tensor of another device."""
    return not node.src and node.name.startswith(_COPY)


def _depends(parent: Tensor) -> Tensor:
    """A node that computes nothing and keeps `parent` allocated until it runs."""
    return Tensor(parent.shape, parent.size, (parent,), kind="wait", root=parent)
