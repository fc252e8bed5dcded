"""The trial of what an embedding is rounded by: some samples through the first layer, up to its feed-forward."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.errors import CalibrationError
from quantkit.forward.arrays import fetch, place
from quantkit.forward.linears import Input, LayerLinears, NormFold
from quantkit.forward.weights import f32
from quantkit.gguf.kernels import dequantize_rows, quantize_rows
from quantkit.quant.embedding import STATE_PARTS, costs
from quantkit.quant.feedback import Curvature, curvature, quantize_with_feedback
from quantkit.quant.grid import Array
from quantkit.stream.layer import LayerWeights, keys_of, names_outside_experts
from quantkit.stream.rounded import with_embedding
from quantkit.stream.stream import Stream
from quantkit.workers import Workers

_SHRINK = 0.1
_SAMPLES = 2
# Of the error of weights that are rounded alone. Smaller gains (SmolLM2's 0.88) lower no divergence.
_LARGEST_RATIO = 0.85


class EmbeddingTrial:
    """Finds what the embedding of `stream` is rounded by to each of `kinds`.

    The error of a rounded embedding is the mean of the tokens' squared relative errors of the feed-forward's input.
    """

    def __init__(self, stream: Stream, kinds: Sequence[GGMLQuantizationType], workers: Workers) -> None:
        """Raises CalibrationError where a hidden state is not finite."""
        self._stream, self._kinds, self._workers = stream, kinds, workers
        self._layer = stream.linears(0)
        self._entry = _last_normed(self._layer)
        native, name = stream.native, stream.decoder.embedding + ".weight"
        self._tensors = stream.load_tensors(names_outside_experts(native, self._layer))
        self._ids = np.unique(stream.tokens[:_SAMPLES])
        self._rows = np.concatenate([f32(native.rows(name, id, id + 1)) for id in self._ids.tolist()])

    def best(self) -> dict[GGMLQuantizationType, Curvature]:
        """What each type is rounded by; without the types that gain little by it."""
        if self._entry is None:
            return {}
        self._wanted = self._received(self._rows)
        self._alone = {kind: self._error(kind, quantize_rows(kind, self._rows)) for kind in self._kinds}
        hidden = self._rows.shape[1]
        of_layer = costs(self._layer, lambda name: self._tensors[name], hidden)
        best = self._try(of_layer.state)
        if of_layer.linears:
            part, *others = STATE_PARTS
            tried = [(self._try(of_layer.with_state(base, part)), base) for base in of_layer.bases()]
            first, base = min(tried, key=lambda one: one[0].ratio)
            candidates = [best, first, *(self._try(of_layer.with_state(base, part)) for part in others)]
            best = min(candidates, key=lambda one: one.ratio)
        return {kind: best.by for kind in best.gaining if best.by is not None}

    @cached_property
    def _weights(self) -> LayerWeights:
        """The first layer's tensors on the device, for runs that end at the feed-forward's input."""
        assert self._entry is not None
        return replace(self._stream.weights(self._tensors, keys_of((self._entry,))), until=self._entry.key)

    def _try(self, metric: Array) -> "_Tried":
        try:
            by = curvature(metric, len(metric), shrink=_SHRINK, workers=self._workers)
        except CalibrationError:  # all weights are zero
            return _Tried(np.inf, [], None)
        ratios = {
            kind: self._error(kind, quantize_with_feedback(kind, self._rows, by, workers=self._workers))
            / self._alone[kind]
            for kind in self._kinds
        }
        return _Tried(
            float(np.mean(list(ratios.values()))), [kind for kind in ratios if ratios[kind] <= _LARGEST_RATIO], by
        )

    def _error(self, kind: GGMLQuantizationType, data: NDArray[np.uint8]) -> float:
        tiny = np.finfo(np.float32).tiny
        received = self._received(dequantize_rows(kind, data, self._rows.shape[1]))
        energy = np.maximum((self._wanted * self._wanted).sum(1), tiny)
        return float(max((((received - self._wanted) ** 2).sum(1) / energy).mean(), tiny))

    def _received(self, rows: Array) -> Array:
        """The feed-forward's input (n, width) with these rows of the embedding, for the tokens of the first samples."""
        stream, entry = self._stream, self._entry
        assert entry is not None
        decoder = with_embedding(
            stream.decoder, lambda start, stop: rows[np.searchsorted(self._ids, range(start, stop))]
        )

        def one(sample: int) -> Array:
            x = place(decoder.embed(stream.tokens[sample].tolist()), stream.options.device)
            received: Array = fetch(stream.input_of(0, entry.key, self._weights, sample, x))
            return received

        return np.concatenate([one(sample) for sample in range(min(_SAMPLES, len(stream.tokens)))])


@dataclass(frozen=True)
class _Tried:
    """The mean of the types' errors over those of weights rounded alone; the types that gain; the curvature."""

    ratio: float
    gaining: list[GGMLQuantizationType]
    by: Curvature | None


def _last_normed(layer: LayerLinears) -> Input | None:
    """The last input that is the hidden states behind a norm: that of the feed-forward."""
    keys = {key for fold in layer.folds if isinstance(fold, NormFold) for key in fold.inputs}
    normed = [entry for entry in layer.inputs if entry.key in keys and entry.expert is None]
    return normed[-1] if normed else None
