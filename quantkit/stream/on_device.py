"""What the stream does where the forward runs on a device of torch: half precision, reading ahead, states in memory."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from quantkit.families.base.native import Source
from quantkit.forward.arrays import Array, is_bfloat16, place
from quantkit.forward.linears import Input
from quantkit.machine import available_memory
from quantkit.stream.layer import LayerWeights
from quantkit.stream.states import States
from quantkit.stream.statistics import Statistics
from quantkit.stream.watcher import Tensors

LEAST_SIDE = 513
"""Matrices whose sides are at least this are multiplied in bfloat16; a router of up to 512 experts is not."""
_STATES_SHARE = 4  # states are held in memory if they take at most a fourth of what is available
_STATES_FILES = 4  # of a layer at most: its inputs, its outputs, and two of a layer with experts


def layer_weights(
    native: Source, tensors: Tensors, keys: Mapping[tuple[str, int], str], to: Any, *, halves: bool = False
) -> LayerWeights:
    """The tensors of a layer on the device `to`, None for numpy. `keys`: see `LayerWeights`.

    halves: the matrices of the linears in `keys` are bfloat16 there, if they are large and all their values are. The
    product of two bfloat16 matrices is summed in float32, so only the inputs are rounded.
    """
    of_linears = {linear + ending for linear, _ in keys for ending in ("", ".weight")} if halves else set()
    placed = {}
    for name, values in tensors.items():  # one after another, so that only one is there in float32 as well
        tensor = place(values, to)
        is_large = tensor.ndim > 1 and min(tensor.shape[-2:]) >= LEAST_SIDE
        placed[name] = _as_bfloat16(tensor) if to is not None and name in of_linears and is_large else tensor
    return LayerWeights(native.whole, native.rows, native.tensors.keys(), native.round_input, placed, keys)


def statistics_of(inputs: Iterable[Input], weights: LayerWeights, to: Any, *, gram: bool) -> dict[str, Statistics]:
    """Empty statistics of the inputs, on the device `to`."""

    def in_halves(entry: Input) -> bool:
        names = (linear.weight for linear in entry.linears)
        return to is not None and any(is_bfloat16(weights.tensors[name]) for name in names if name in weights.tensors)

    return {entry.key: Statistics.of(entry.width, gram=gram, to=to, halves=in_halves(entry)) for entry in inputs}


def _as_bfloat16(values: Any) -> Any:
    half = values.bfloat16()
    return half if bool((half.float() == values).all()) else values


class ReadAhead:
    """Reads layers, with `ahead` the next one in a thread while one is computed. `names`: of a layer's tensors."""

    def __init__(
        self,
        load: Callable[[Iterable[str]], Tensors],
        names: Callable[[int], Iterable[str]],
        count: int,
        *,
        ahead: bool,
    ) -> None:
        self._load, self._names, self._count = load, names, count
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="quantkit-read") if ahead else None
        self._next: tuple[int, Future[Tensors]] | None = None

    def layer(self, number: int) -> Tensors:
        """The tensors of a layer."""
        known, self._next = self._next, None
        tensors = known[1].result() if known is not None and known[0] == number else self._load(self._names(number))
        if self._pool is not None and number + 1 < self._count:
            self._next = number + 1, self._pool.submit(self._load, self._names(number + 1))
        return tensors

    def close(self) -> None:
        """Wait for the layer that is being read."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def held_states(n_samples: int, n_tokens: int, hidden: int, room: int | None = None) -> int:
    """Bytes of the states of a stream that holds them in memory; 0 if more than `room`, or too many for the machine."""
    most = _STATES_FILES * n_samples * n_tokens * hidden * 4
    fits = _STATES_SHARE * most <= available_memory() and (room is None or most <= room)
    return most if fits else 0


def open_states(
    folder: Path, n_samples: int, n_tokens: int, hidden: int, to: Any, *, hold: bool | None = None
) -> States:
    """The states of a stream on the device `to`, in pinned memory if `hold`; None: where they fit."""
    if hold is None:
        hold = held_states(n_samples, n_tokens, hidden) > 0
    if to is None or not hold:
        return States(folder, n_samples, n_tokens, hidden)
    return HeldStates(folder, n_samples, n_tokens, hidden, to)


class HeldStates(States):
    """Hidden states in pinned memory, from which they reach the device fast; `save` writes a file of them.

    `read` returns a sample on the device. A run that resumes reads from the file what is not held.
    """

    def __init__(self, folder: Path, n_samples: int, n_tokens: int, hidden: int, to: Any) -> None:
        super().__init__(folder, n_samples, n_tokens, hidden)
        self.to = to
        self._held: dict[str, Any] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="quantkit-save")
        self._saving: list[Future[None]] = []

    def read(self, name: str, sample: int) -> Array:
        if name not in self._held:
            x: Array = place(super().read(name, sample), self.to)
            return x
        there: Array = self._held[name][sample].to(self.to, non_blocking=True)
        return there

    def write(self, name: str, sample: int, values: Array) -> None:
        self._array(name)[sample].copy_(place(values, self.to))

    def save(self, name: str) -> None:
        held = self._held[name].numpy()
        self._saving += [self._pool.submit(super(HeldStates, self).write, name, i, held[i]) for i in range(len(held))]

    def wait(self) -> None:
        for future in self._saving:
            future.result()
        self._saving.clear()

    def _array(self, name: str) -> Any:
        if name not in self._held:
            self._held[name] = self._empty(pinned=self.to.type == "cuda")
        return self._held[name]

    def _empty(self, *, pinned: bool) -> Any:
        import torch

        try:
            return torch.empty(self.shape, pin_memory=pinned)
        except RuntimeError:  # the system limits pinned memory
            return torch.empty(self.shape)

    def close(self) -> None:
        """End the writing and close the files without deleting them."""
        self._pool.shutdown(cancel_futures=True)
        super().close()
