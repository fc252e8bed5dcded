"""The samples through the rounded layers, beside the source's: what each rounded matrix receives, and should have."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from quantkit.forward.arrays import Array, device, fetch, namespace, place
from quantkit.forward.linears import Input, LayerLinears
from quantkit.machine import release_freed_memory
from quantkit.stream.layer import keys_of
from quantkit.stream.statistics import WIDE_BLOCK, Statistics, samples_at_once
from quantkit.stream.stream import Stream
from quantkit.stream.watcher import Tensors
from quantkit.workers import SERIAL, Workers, parts


@dataclass(frozen=True)
class AsymmetricSums:
    """Sums over the tokens of an input x of the source and the same input x~ of the rounded model.

    `statistics`: of x~. `cross`: the sum of (x - x~) x~', float32 (width, width).
    """

    statistics: Statistics
    cross: Array


class RoundedStream:
    """Hidden states of the model as it is rounded so far, in `folder`; `source`: the stream of the source's states."""

    def __init__(self, source: Stream, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        options = replace(source.options, gram=False, propagate=False, hold_states=False)
        self.source = source
        self._rounded = Stream(source.native, source.tokens, folder, threads=source.threads, options=options)

    def embed(self) -> None:
        """Write the input states of the first layer; the embedding is the source's."""
        self._rounded.embed()

    def can_start_at(self, number: int) -> bool:
        """Whether the input states of layer `number` exist."""
        return self._rounded.can_start_at(number)

    def sums(self, layer: LayerLinears, entry: Input, source: Tensors, rounded: Tensors) -> AsymmetricSums:
        """The sums of an input of a layer without routed experts.

        source: the layer's tensors. rounded: the same, with rounded weights in the linears before this input.
        """
        keys, number, to = keys_of((entry,)), layer.number, self.source.options.device
        weights = [
            replace(stream.weights(tensors, keys), until=entry.key)
            for stream, tensors in ((self.source, source), (self._rounded, rounded))
        ]
        sums = AsymmetricSums(
            Statistics.of(entry.width, gram=True, to=to), place(np.zeros((entry.width,) * 2, np.float32), to)
        )
        workers, n_samples = self.source.workers, len(self.source.tokens)

        def one(sample: int) -> list[Array]:
            streams = (self.source, self._rounded)
            return [stream.input_of(number, entry.key, of, sample) for stream, of in zip(streams, weights, strict=True)]

        at_once = samples_at_once(2 * entry.width, self.source.tokens.shape[1])
        for batch in parts(n_samples, at_once):
            pairs = workers.map(one, range(n_samples)[batch])
            sums.statistics.add([x for _, x in pairs], workers=workers if sums.statistics.is_wide else SERIAL)
            _add_cross(sums.cross, pairs, workers if to is None else SERIAL)
            release_freed_memory()
        return AsymmetricSums(sums.statistics.fetched(), fetch(sums.cross))

    def advance(self, number: int, rounded: Tensors) -> None:
        """Write the input states of the next layer; `rounded`: the tensors of layer `number` as they are rounded."""
        self._rounded.advance(number, rounded)

    def close(self) -> None:
        """Stop the threads and close the states' files without deleting them."""
        self._rounded.close()

    def __enter__(self) -> "RoundedStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _add_cross(cross: Array, pairs: Sequence[Sequence[Array]], workers: Workers) -> None:
    """Add (x - x~) x~' of all tokens of the pairs (x, x~), each (n, width); blocks of rows side by side."""
    xp = namespace(cross)
    difference = xp.concatenate([x - other for x, other in pairs])
    inputs = xp.concatenate([other for _, other in pairs])

    def add(rows: slice) -> None:
        cross[rows] += difference[:, rows].T @ inputs

    workers.map(add, list(parts(len(cross), WIDE_BLOCK)) if device(cross) is None else [slice(None)])
