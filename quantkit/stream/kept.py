"""Values of a layer's forward that are computed once, although the forward runs up to one input after another.

`Weights.once` names them: the outputs of attention's heads, the hidden states after attention, what the last linear of
a feed-forward reads. They are in memory if they are few, otherwise in files, float32 (samples, tokens, width). A killed
run starts its layer over, so files of another run are not read.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock

import numpy as np

from quantkit.forward.arrays import Array
from quantkit.forward.linears import LayerLinears
from quantkit.stream.states import States

HELD_BYTES = 128 << 20
"""The values of the two streams that run through a layer at once stay in memory up to this size."""
_READ_BY_LAST = ("attention.out", "mamba.out", "feed.down", "shared.down")


class KeptValues:
    """The values of one layer, in memory if `hold`, or in `folder`. Threads may use different samples at once.

    A value depends only on the weights before it, so it may be kept as soon as these are final.
    """

    def __init__(self, folder: Path, n_samples: int, n_tokens: int, *, hold: bool) -> None:
        self.folder, self.shape, self.hold = folder, (n_samples, n_tokens), hold
        self._held: dict[tuple[str, int], Array] = {}
        self._files: dict[str, tuple[str, States]] = {}
        self._written: set[tuple[str, int]] = set()
        self._within: dict[str, frozenset[str]] = {}
        self._number: int | None = None
        self._lock = Lock()

    def begin(self, number: int) -> None:
        """Forget the values of every other layer than `number`."""
        if number != self._number:
            self.close()
            self._number = number

    def of(self, sample: int) -> "SampleValues":
        """The values of a sample, for one run of the forward."""
        return SampleValues(self, sample)

    def read(self, name: str, sample: int, until: str | None) -> Array | None:
        """A value (n_tokens, width), or None if it is not known, or the input `until` is within its computation.

        Raises ReadError, see `States.read`.
        """
        if (name, sample) not in self._written or until in self._within[name]:
            return None
        if self.hold:
            return self._held[name, sample]
        file, states = self._files[name]
        return states.read(file, sample)

    def write(self, name: str, sample: int, x: Array, within: frozenset[str]) -> None:
        """Keep a value (n_tokens, width). `within`: the keys of the inputs within its computation.

        Raises OutputError when the disk is full.
        """
        with self._lock:
            self._within[name] = within
            if not self.hold and name not in self._files:
                self._files[name] = f"kept-{len(self._files)}", States(self.folder, *self.shape, x.shape[1])
        if self.hold:
            self._held[name, sample] = np.ascontiguousarray(x)
        else:
            file, states = self._files[name]
            states.write(file, sample, x)
        self._written.add((name, sample))

    def close(self) -> None:
        """Free the memory, delete the files."""
        for file, states in self._files.values():
            states.close()
            (self.folder / file).unlink(missing_ok=True)
        for known in (self._held, self._files, self._within, self._written):
            known.clear()


class SampleValues:
    """The kept values of a sample, for one run of the forward."""

    def __init__(self, kept: KeptValues, sample: int) -> None:
        self._kept, self._sample = kept, sample

    def once(self, name: str, compute: Callable[[], Array], inputs: Mapping[str, Array], until: str | None) -> Array:
        """The value `name`, as it is kept, or computed and kept.

        `inputs`: those that the run has recorded, by key. `until`: see `LayerWeights`.
        """
        known = self._kept.read(name, self._sample, until)
        if known is not None:
            return known
        before = set(inputs)
        x = compute()
        self._kept.write(name, self._sample, x, frozenset(inputs.keys() - before))
        return x


def kept_width(layer: LayerLinears, width: int) -> int:
    """The values of a token that are kept in a layer, at most. `width`: of the hidden states."""
    entries = (entry for entry in layer.inputs if entry.expert is None)
    return width + sum(
        entry.width for entry in entries if entry.key in _READ_BY_LAST or entry.key.startswith("attention.group.")
    )
