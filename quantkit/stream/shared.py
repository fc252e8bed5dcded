"""Keys and values of layers that later layers use, in files: memory holds those of one sample at a time."""

from pathlib import Path
from typing import Any

import numpy as np

from quantkit.forward.arrays import Array, fetch, place
from quantkit.forward.attention import Context
from quantkit.forward.forward import Decoder
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

    def load(self, number: int, sample: int, context: Context) -> None:
        """Put the keys and values that layer `number` uses into `context`. Raises ReadError, see `States.read`."""
        source = self.decoder.shared_from(number)
        if source is None:
            return
        shape, states = self._files[source]
        keys, values = states.read(shared_file(source), sample).reshape(shape)
        context.shared[source] = (place(keys, self.device), place(values, self.device))

    def save(self, number: int, sample: int, context: Context) -> None:
        """Write the keys and values of layer `number` if later layers use them. Raises OutputError."""
        if number in self._files:
            pair: list[Array] = [fetch(part) for part in context.shared[number]]
            self._files[number][1].write(shared_file(number), sample, np.stack(pair))

    def close(self) -> None:
        """Close the files without deleting them."""
        for _, states in self._files.values():
            states.close()


def bytes_per_token(decoder: Decoder) -> int:
    """Disk bytes per token of all files between two layers: hidden states, and keys and values for later layers."""
    files = 4 if decoder.architecture.experts else 2
    shapes = [decoder.key_shape(number) for number in decoder.shared_layers]
    return 4 * (files * decoder.width + sum(2 * heads * size for heads, size in shapes))


def shared_file(number: int) -> str:
    """Name of the file with the keys and values of layer `number`."""
    return f"shared-{number}"
