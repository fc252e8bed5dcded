"""Memory of a compute graph: a replay of ggml's graph allocator on shapes.

Rules: ggml_gallocr_alloc_graph_impl and ggml_dyn_tallocr (ggml/src/ggml-alloc.c). Tensors are placed in the order of
their computation, and freed after their last use. Each goes into the smallest hole that fits. An operation that may
work in place takes over an operand that nothing else needs.
"""

from collections import defaultdict
from collections.abc import Mapping

from quantkit.planning.tensors import Graph, Tensor

ALIGNMENT = {"CPU": 32}
_OTHER_ALIGNMENT = 128
_ENDLESS = 1 << 62


class Arena:
    """One device's buffer: free blocks (offset, size) by address, and the furthest byte ever used."""

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.free_blocks: list[list[int]] = [[0, _ENDLESS]]
        self.peak = 0

    def padded(self, size: int) -> int:
        """`size` rounded up to the alignment."""
        return -(-size // self.alignment) * self.alignment

    def take(self, size: int) -> int:
        """The offset of a new block of `size` bytes: in the smallest hole that fits."""
        size = self.padded(size)
        best = -1
        for i, (_, room) in enumerate(self.free_blocks[:-1]):
            # of equal holes the last one (the comparison there is <=)
            if room >= size and (best < 0 or room <= self.free_blocks[best][1]):
                best = i
        block = self.free_blocks[best]
        offset = block[0]
        block[0] += size
        block[1] -= size
        if block[1] == 0:
            del self.free_blocks[best]
        self.peak = max(self.peak, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        """Free a block, and join it with the holes beside it."""
        size = self.padded(size)
        blocks = self.free_blocks
        at = 0
        while at < len(blocks) and blocks[at][0] < offset:
            at += 1
        blocks.insert(at, [offset, size])
        if at + 1 < len(blocks) and offset + size == blocks[at + 1][0]:
            blocks[at][1] += blocks.pop(at + 1)[1]
        if at and blocks[at - 1][0] + blocks[at - 1][1] == offset:
            blocks[at - 1][1] += blocks.pop(at)[1]


class _Slot:
    """The allocator's state of one tensor."""

    __slots__ = ("arena", "children", "offset", "owned", "views")

    def __init__(self) -> None:
        self.children = self.views = self.offset = 0
        self.owned = False
        self.arena: Arena | None = None


def graph_memory(graph: Graph, device: Mapping[int, str] | None = None) -> dict[str, int]:
    """Bytes of compute buffer on each device. `device`: id(tensor) to device name; CPU by default."""
    arenas: dict[str, Arena] = {}
    slots: defaultdict[int, _Slot] = defaultdict(_Slot)
    where = device or {}

    def arena_of(tensor: Tensor) -> Arena:
        name = where.get(id(tensor), "CPU")
        if name not in arenas:
            arenas[name] = Arena(ALIGNMENT.get(name, _OTHER_ALIGNMENT))
        return arenas[name]

    def place(tensor: Tensor) -> None:
        slot = slots[id(tensor)]
        if slot.owned or tensor.kind == "cache" or tensor.root is not None:
            return
        if tensor.inplace and _take_over(tensor, slot, slots):
            return
        slot.arena = arena_of(tensor)
        slot.owned = True
        slot.offset = slot.arena.take(tensor.nbytes)

    for leaf in graph.leaves:
        place(leaf)
    for node in graph.nodes:
        if node.root is not None and node.kind != "wait":
            slots[id(node.root)].views += 1
        for parent in node.src:
            slots[id(parent)].children += 1
    for node in graph.nodes:
        for parent in node.src:
            place(parent)
        place(node)
        for parent in node.src:
            _release(parent, slots)
    return {name: arena.peak for name, arena in arenas.items()}


def _take_over(tensor: Tensor, slot: _Slot, slots: Mapping[int, _Slot]) -> bool:
    """Reuse the memory of an operand for `tensor` if possible; returns whether it did. Views are never reused."""
    for parent in tensor.src:
        parent_slot = slots[id(parent)]
        if (
            not parent_slot.owned
            or parent_slot.arena is None
            or parent.kept
            or parent_slot.children != 1
            or parent_slot.views
        ):
            continue
        if tensor.same_layout(parent):
            slot.arena, slot.offset, slot.owned = parent_slot.arena, parent_slot.offset, True
            parent_slot.owned = False
            return True
    return False


def _release(parent: Tensor, slots: Mapping[int, _Slot]) -> None:
    """End one use of `parent`; the last use frees it, or the tensor that it views."""
    slot = slots[id(parent)]
    slot.children -= 1
    if slot.children or slot.views:
        return
    owner = parent
    if parent.root is not None:
        owner = parent.root
        slots[id(owner)].views -= 1
    owner_slot = slots[id(owner)]
    if (
        owner_slot.owned
        and not owner_slot.views
        and not owner_slot.children
        and not owner.kept
        and owner_slot.arena is not None
    ):
        owner_slot.arena.give(owner_slot.offset, owner.nbytes)
        owner_slot.owned = False
