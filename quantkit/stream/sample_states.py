"""The samples of a stream between two layers: their hidden states, and what they need to run through a layer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CalibrationError
from quantkit.families.base.native import Source
from quantkit.forward.allocator import keep_freed_memory
from quantkit.forward.arrays import Array, place
from quantkit.forward.layer import Context
from quantkit.forward.layer_linears import layer_linears
from quantkit.forward.linears import LayerLinears, Linear
from quantkit.machine import release_freed_memory
from quantkit.stream.kept import KeptValues
from quantkit.stream.layer import LayerWeights, names_outside_experts
from quantkit.stream.on_device import ReadAhead, layer_weights, open_states
from quantkit.stream.shared import SharedStates
from quantkit.stream.states import states_file
from quantkit.stream.statistics import Statistics, add_inputs, samples_at_once
from quantkit.stream.watcher import Tensors
from quantkit.workers import Workers

_T = TypeVar("_T")


@dataclass(frozen=True)
class StreamOptions:
    """How samples run through the layers.

    `gram`: sum Gram matrices, not only squares. `propagate`: the next layer receives the output of the quantized
    layer, not of the source's. `device`: the torch device, None for numpy (see `find_device`). `sample_name`: the word
    for a sample in errors. `hold_states`: see `open_states`. `hold_values`: `keep_values` keeps them in memory.
    """

    gram: bool = True
    propagate: bool = False
    device: Any = None
    sample_name: str = "calibration sample"
    hold_states: bool | None = None
    hold_values: bool = False


class SampleStates:
    """The samples `tokens` (int32, (n_samples, n_tokens)) on their way through the layers of `native`.

    `folder` holds the hidden states between layers. `kept`: values of the current layer, after `keep_values`.
    """

    def __init__(
        self,
        native: Source,
        tokens: NDArray[np.int32],
        folder: Path,
        *,
        threads: int,
        options: StreamOptions = StreamOptions(),
    ) -> None:
        self.native, self.tokens, self.options, self.folder = native, tokens, options, folder
        self.kept: KeptValues | None = None
        # one sample uses the whole GPU
        self.threads = threads if options.device is None else 1
        self.decoder = native.decoder
        shape, hold = (len(tokens), tokens.shape[1]), options.hold_states
        self.states = open_states(folder, *shape, self.decoder.width, options.device, hold=hold)
        # inputs and outputs of experts; streams side by side are wider than these
        narrow = self.decoder.fed_width < self.decoder.width
        self.fed_states = (
            open_states(folder, *shape, self.decoder.fed_width, options.device, hold=hold) if narrow else self.states
        )
        ahead = options.device is not None
        self.reader = ReadAhead(self.load_tensors, self._names, self.decoder.n_layers, ahead=ahead)
        self.shared = SharedStates(self.decoder, folder, len(tokens), tokens.shape[1], options.device)
        keep_freed_memory()
        self.workers = Workers(self.threads)

    def keep_values(self) -> None:
        """Compute the values of `Weights.once` once in a layer, whose weights must then be final where they are used.

        A device of torch computes them again, which is faster than their way to the disk and back.
        """
        if self.kept is None and self.options.device is None and not self.options.propagate:
            self.kept = KeptValues(self.folder, *self.tokens.shape, hold=self.options.hold_values)

    def begin(self, number: int) -> None:
        """Forget the values of every other layer than `number`."""
        if self.kept is not None:
            self.kept.begin(number)

    def tapped(self, weights: LayerWeights, sample: int) -> LayerWeights:
        """The weights for one run of a sample, see `LayerWeights.tapped`."""
        return weights.tapped(None if self.kept is None else self.kept.of(sample))

    def linears(self, number: int) -> LayerLinears:
        """The linears of a layer."""
        return layer_linears(self.native.architecture, self.native.config, number, self.native.tensors)

    def embed(self) -> None:
        """Write the input states of the first layer. Raises CalibrationError when a state is not finite."""

        def one(sample: int) -> None:
            x = self.decoder.embed(self.tokens[sample].tolist())
            self.check_finite(x, "the embedding", sample)
            self.states.write(states_file(0), sample, x)

        self.workers.map(one, range(len(self.tokens)))

    def can_start_at(self, number: int) -> bool:
        """Whether the input states of layer `number` exist."""
        return self.states.holds(states_file(number))

    def weights(self, tensors: Tensors, keys: Mapping[tuple[str, int], str], *, halves: bool = False) -> LayerWeights:
        """The tensors of a layer on the device, see `layer_weights`."""
        return layer_weights(self.native, tensors, keys, self.options.device, halves=halves)

    def gather(self, one: Callable[[int], dict[str, Array]], statistics: Mapping[str, Statistics]) -> None:
        """Call `one` for every sample, and sum its taps in the order of samples."""
        width = sum(len(entry.squares) for entry in statistics.values())
        for batch in groups(range(len(self.tokens)), samples_at_once(width, self.tokens.shape[1])):
            add_inputs(statistics, self.workers.map(one, batch), workers=self.workers)
            # Each thread frees into an arena of its own, which keeps its pages: peaks of phases would add up.
            release_freed_memory()
        for entry in statistics.values():
            entry.finish()

    def context(self, number: int, sample: int) -> Context:
        """What layer `number` needs of a sample beside its hidden states."""
        context = self.decoder.context(self.tokens[sample].tolist())
        self.shared.load(number, sample, context)
        return context

    def read(self, name: str, sample: int) -> Array:
        """The hidden states of a sample, on the device."""
        x: Array = place(self.states.read(name, sample), self.options.device)
        return x

    def read_fed(self, name: str, sample: int) -> Array:
        """What experts read of a sample, or the sum of their outputs, on the device."""
        x: Array = place(self.fed_states.read(name, sample), self.options.device)
        return x

    def fed_file(self, number: int) -> str:
        """The file in which the outputs of a layer's experts are summed; the next states take its place."""
        return states_file(number + 1) if self.fed_states is self.states else "fed"

    def load_tensors(self, names: Iterable[str]) -> Tensors:
        """Tensors of the checkpoint, whole, in float32."""
        return {name: np.array(self.native.whole(name), np.float32) for name in sorted(names)}

    def of_stacks(self, linears: LayerLinears, expert: int) -> Tensors:
        """The matrices of an expert that are stacked in tensors of float values, float32, by `Linear.alone`."""
        of_expert = (linear for entry in linears.inputs if entry.expert == expert for linear in entry.linears)
        return {
            linear.alone: self._of_stack(linear, linear.index)
            for linear in of_expert
            if linear.index is not None and linear.weight in self.native.tensors
        }

    def _of_stack(self, linear: Linear, index: int) -> Array:
        """A matrix of a stack (n_out, n_in)."""
        height = linear.n_in if linear.form.turned else linear.n_out
        rows = np.array(self.native.rows(linear.weight, index * height, (index + 1) * height), np.float32)
        return np.ascontiguousarray(rows.T) if linear.form.turned else rows

    def _names(self, number: int) -> list[str]:
        return names_outside_experts(self.native, self.linears(number))

    def check_finite(self, x: Array, stage: str, sample: int) -> None:
        """Raise CalibrationError if a state is not finite after `stage`."""
        # one infinite or NaN value makes the sum infinite or NaN
        if not np.isfinite(float(x.sum())):
            raise CalibrationError(
                f"{stage.rstrip('.')} gives hidden states that are not finite (NaN or infinite) for"
                f" {self.options.sample_name} {sample + 1}; check the checkpoint for damage, or use another text"
            )

    def close(self) -> None:
        """Stop the threads and close the states' files without deleting them."""
        self.workers.close()
        self.reader.close()
        self.states.close()
        self.fed_states.close()
        self.shared.close()
        if self.kept is not None:
            self.kept.close()

    def __enter__(self) -> "SampleStates":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def groups(items: Sequence[_T], size: int) -> list[Sequence[_T]]:
    """`items` in groups of `size`, the last one smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]
