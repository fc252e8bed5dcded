"""What later layers use of a layer, in files: keys and values, or an indexer's choice of keys.

Memory holds those of one sample at a time.
"""

from pathlib import Path
from typing import Any

import numpy as np

from quantkit.forward.arrays import Array, fetch, place
from quantkit.forward.forward import Decoder
from quantkit.forward.layer import Context
from quantkit.stream.states import States


class SharedStates:
    """Loads into a sample's context what a layer uses of an earlier one, and saves what later layers use."""

    def __init__(self, decoder: Decoder, folder: Path, n_samples: int, n_tokens: int, device: Any) -> None:
        self.decoder, self.device = decoder, device
        self._files: dict[int, tuple[tuple[int, ...], States]] = {}
        for number in decoder.shared_layers:
            heads, size = decoder.key_shape(number)
            states = States(folder, n_samples, n_tokens, 2 * heads * size)
            self._files[number] = ((2, heads, n_tokens, size), states)
        self._choices = {
            number: States(folder, n_samples, n_tokens, n_tokens) for number in decoder.choosing_layers(n_tokens)
        }

    def load(self, number: int, sample: int, context: Context) -> None:
        """Put what layer `number` uses of an earlier one into `context`. Raises ReadError, see `States.read`."""
        chooser = self.decoder.chosen_by(number)
        if chooser in self._choices and chooser != number:
            excluded = self._choices[chooser].read(shared_file(chooser), sample) > 0
            context.excluded[chooser] = place(excluded, self.device)
        source = self.decoder.shared_from(number)
        if source is None:
            return
        shape, states = self._files[source]
        keys, values = states.read(shared_file(source), sample).reshape(shape)
        context.shared[source] = (place(keys, self.device), place(values, self.device))

    def save(self, number: int, sample: int, context: Context) -> None:
        """Write what later layers use of layer `number`, if the run computed it. Raises OutputError."""
        if number in self._choices and number in context.excluded:
            excluded = context.excluded[number]
            assert excluded is not None
            self._choices[number].write(shared_file(number), sample, fetch(excluded).astype(np.float32))
        if number in self._files and number in context.shared:
            pair: list[Array] = [fetch(part) for part in context.shared[number]]
            self._files[number][1].write(shared_file(number), sample, np.stack(pair))

    def close(self) -> None:
        """Close the files without deleting them."""
        for states in (*(states for _, states in self._files.values()), *self._choices.values()):
            states.close()


def bytes_per_token(decoder: Decoder, n_tokens: int) -> int:
    """Disk bytes per token of all files between two layers, for sequences of `n_tokens`.

    These are hidden states, keys and values for later layers, and choices of keys for later layers.
    """
    files = 4 if decoder.architecture.experts else 2
    shapes = [decoder.key_shape(number) for number in decoder.shared_layers]
    shared = sum(2 * heads * size for heads, size in shapes) + n_tokens * len(decoder.choosing_layers(n_tokens))
    return 4 * (files * decoder.width + shared)


def shared_file(number: int) -> str:
    """Name of the file with the keys and values of layer `number`."""
    return f"shared-{number}"
