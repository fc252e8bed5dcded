"""The splits of a token's graph: consecutive operations on one device, and the tensors that describe them to it.

llama.cpp sends an RPC device the description of a split: its tensors, and all tensors on the device that they are
computed from (serialize_graph of ggml-rpc.cpp). A split that the device computed last is not sent again. So a device
with one split gets none, and one with a split in each layer gets all of them for each token. The descriptions of later
layers are longer, because they have the earlier layers in them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quantkit.planning.devices import CPU
from quantkit.planning.schedule import is_copy, is_view
from quantkit.planning.tensors import Graph, Tensor


@dataclass(frozen=True)
class Splits:
    """The part of a device: operations, splits, and tensors that describe the splits if it has more than one."""

    operations: int
    splits: int
    described: int


def splits_of(graph: Graph, device: Mapping[int, str]) -> dict[str, Splits]:
    """The part of each device in a placed graph. `device`: of each tensor, by id."""
    parts: dict[str, list[tuple[int, int]]] = {}
    for name, operations, described in _splits(graph, device):
        parts.setdefault(name, []).append((operations, described))
    return {
        name: Splits(
            sum(operations for operations, _ in splits),
            len(splits),
            sum(described for _, described in splits) if len(splits) > 1 else 0,
        )
        for name, splits in parts.items()
    }


def _splits(graph: Graph, device: Mapping[int, str]) -> Iterator[tuple[str, int, int]]:
    """Device, operations and described tensors of each split, in order."""
    reached: dict[int, int] = {}
    """For each tensor a bit mask of the tensors that it is computed from, with itself."""
    here, operations, mask = "", 0, 0
    for node in graph.nodes:
        if node.kind != "op" or is_copy(node):
            continue
        reached[id(node)] = _reached(node, reached)
        if is_view(node):
            continue
        on = device.get(id(node), CPU)
        if on != here and operations:
            yield here, operations, mask.bit_count()
            operations = mask = 0
        here, operations, mask = on, operations + 1, mask | reached[id(node)]
    if operations:
        yield here, operations, mask.bit_count()


def _reached(node: Tensor, reached: dict[int, int]) -> int:
    """The bits of a tensor's operands, and one for itself; one more for its weight."""
    mask = 0
    for parent in node.src:
        known = reached.get(id(parent))
        if known is None:  # a leaf, or a copy from another device
            known = reached[id(parent)] = 1 << 2 * len(reached)
        mask |= known
    own = 3 if node.weight else 1
    return mask | own << 2 * len(reached)
