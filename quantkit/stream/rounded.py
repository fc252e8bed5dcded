"""The samples through the rounded layers, beside the source's: what each rounded matrix receives, and should have."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from quantkit.forward.arrays import Array, device, namespace, place
from quantkit.forward.decoder_layer import MIDDLE
from quantkit.forward.feed_forward import expert_count
from quantkit.forward.forward import Decoder
from quantkit.forward.linears import Input, LayerLinears
from quantkit.machine import release_freed_memory
from quantkit.quant.fold import is_loaded
from quantkit.stream.asymmetric_sums import AsymmetricSums, limited
from quantkit.stream.layer import keys_of
from quantkit.stream.routing import EXPERT_FLOOR, RoutedExpert
from quantkit.stream.states import states_file
from quantkit.stream.statistics import samples_at_once
from quantkit.stream.stream import Stream
from quantkit.stream.watcher import Tensors
from quantkit.workers import parts

EmbeddingRows = Callable[[int, int], Array]
"""(start, stop) -> these rows of an embedding, float32 (stop - start, hidden)."""

# The sum of a token's expert weights counts as at least this part of the median: the states' error is divided by it.
_LEAST_SHARE = np.float32(0.3)


class RoundedStream:
    """Hidden states of the model as it is rounded so far, in `folder`; `source`: the stream of the source's states.

    `hold_out`: the sums have those of held-out samples, and S (see `quant.cross`). `embedding`: that of the rounded
    model, None for the source's.
    """

    def __init__(self, source: Stream, folder: Path, *, hold_out: bool, embedding: EmbeddingRows | None = None) -> None:
        self._hold_out, self._rounds_embedding = hold_out, embedding is not None
        folder.mkdir(exist_ok=True)
        options = replace(source.options, gram=False, propagate=False, hold_states=False)
        self.source = source
        self._rounded = Stream(source.native, source.tokens, folder, threads=source.threads, options=options)
        if embedding is not None:
            self._rounded.decoder = with_embedding(source.decoder, embedding)
        for stream in (source, self._rounded):
            stream.keep_values()

    def embed(self) -> None:
        """Write the input states of the first layer: those of the source, which exist, or of the rounded embedding."""
        if self._rounds_embedding:
            self._rounded.embed()
            return
        first = states_file(0)
        for sample in range(len(self.source.tokens)):
            self._rounded.states.write(first, sample, self.source.read(first, sample))

    def can_start_at(self, number: int) -> bool:
        """Whether the input states of layer `number` exist."""
        return self._rounded.can_start_at(number)

    def sums(self, layer: LayerLinears, entry: Input, source: Tensors, rounded: Tensors) -> AsymmetricSums:
        """The sums of an input outside the routed experts.

        source: the layer's tensors. rounded: the same, with rounded weights in the linears before this input.
        """
        keys, number, to = keys_of((entry,)), layer.number, self.source.options.device
        self._rounded.begin(number)
        weights = [
            replace(stream.weights(tensors, keys), until=entry.key)
            for stream, tensors in ((self.source, source), (self._rounded, rounded))
        ]
        workers, n_samples = self.source.workers, len(self.source.tokens)
        has_residual = self._has_residual(number, entry)
        sums = AsymmetricSums.of(entry, source, to, workers, hold_out=self._hold_out, residual=has_residual)

        def one(sample: int) -> list[Array]:
            streams = zip((self.source, self._rounded), weights, strict=True)
            (x, states), (seen, rounded_states) = (
                stream.input_and_states(number, entry.key, of, sample) for stream, of in streams
            )
            return [x, seen, self._residual(number, entry, states, rounded_states)] if has_residual else [x, seen]

        width = 2 * entry.width + (self.source.decoder.hidden if has_residual else 0)
        at_once = samples_at_once(width, self.source.tokens.shape[1])
        for batch in parts(n_samples, at_once):
            pairs = workers.map(one, range(n_samples)[batch])
            sums.add(pairs, (), workers)
            release_freed_memory()
        sums.statistics.finish()
        return sums

    def expert_sums(self, expert: RoutedExpert, entry: Input, source: Tensors, rounded: Tensors) -> AsymmetricSums:
        """The sums of an input of a routed expert: of the tokens that the rounded model sends to it, in both models.

        source, rounded: the expert's tensors, see `sums`.
        """
        keys, to, key = keys_of((entry,)), self.source.options.device, entry.key
        streams = [
            (stream, replace(stream.weights(tensors, keys), until=key))
            for stream, tensors in ((self.source, source), (self._rounded, rounded))
        ]
        workers, has_all = self.source.workers, all(is_loaded(source, linear) for linear in entry.linears)
        has_residual = has_all and self._has_residual(expert.layer, entry)
        sums = AsymmetricSums.of(entry, source, to, workers, hold_out=self._hold_out, residual=has_residual)

        def some(samples: Sequence[int]) -> list[list[Array]]:
            """The inputs of the expert's tokens and of the extra ones, each of both models, with the residual."""
            own, seen = (stream.expert_inputs(expert, samples, weights) for stream, weights in streams)
            pairs = [[x[key], of[key]] if key in of else [] for x, of in zip(own, seen, strict=True)]
            if has_residual:
                residuals = self._expert_residuals(expert, entry, samples)
                return [[*pair, residual] if pair else [] for pair, residual in zip(pairs, residuals, strict=True)]
            return pairs

        width = 2 * entry.width + (self.source.decoder.hidden if has_residual else 0)
        for batch in self.source.groups_of(expert, width):
            taps = workers.map(some, batch)
            routed, others = ([pairs[kind] for pairs in taps if pairs[kind]] for kind in (0, 1))
            sums.add(routed, others, workers)
            release_freed_memory()
        sums.statistics.finish()
        return sums

    def _has_residual(self, number: int, entry: Input) -> bool:
        return self._hold_out and self.source.decoder.layer(number).completes(entry)

    def _residual(self, number: int, entry: Input, states: Array, rounded_states: Array) -> Array:
        """What an output must add to correct the hidden states after attention (n_tokens, hidden)."""
        states, rounded_states = limited(states, rounded_states)
        residual: Array = (states - rounded_states) / self.source.decoder.layer(number).output_scale(entry)
        return residual

    def _expert_residuals(self, expert: RoutedExpert, entry: Input, samples: Sequence[int]) -> tuple[Array, Array]:
        """The same for the expert's tokens of some samples, and for the extra ones: all experts of a token add it."""
        routed, others = [], []
        for sample in samples:
            states, rounded_states = (stream.read(MIDDLE, sample) for stream in (self.source, self._rounded))
            share = expert.routes.share[sample].sum(-1, keepdims=True)
            share = np.maximum(share, _LEAST_SHARE * np.median(share))
            residual = self._residual(expert.layer, entry, states, rounded_states) / place(share, device(states))
            routed.append(residual[expert.tokens_of(sample)[0]])
            if sample in expert.extra:
                others.append(residual[expert.extra[sample]])
        concatenate = namespace(routed[0]).concatenate
        return concatenate(routed), concatenate(others) if others else routed[0][:0]

    def advance(self, number: int, rounded: Tensors) -> None:
        """Run all samples through a layer as it is rounded, up to its routed experts if it has any."""
        self._rounded.begin(number)
        layer = self._rounded.decoder.layer(number)
        if layer.experts is None:
            self._rounded.advance(number, rounded)
        else:
            self._n_experts = expert_count(layer.experts, layer.layer)
            self._dense = self._rounded.weights(rounded, {})
            self._routes = self._rounded.up_to_experts(number, self._dense, {})
        self._rounded.begin(number + 1)  # the next file's stream has room for its values

    def expert(self, number: int, expert: int) -> RoutedExpert:
        """An expert of layer `number` with the tokens that the rounded model sends to it, and its extra ones."""
        return RoutedExpert(number, expert, self._routes, self._routes.others(expert, EXPERT_FLOOR))

    def advance_expert(self, expert: RoutedExpert, rounded: Tensors) -> None:
        """Add the outputs of an expert as it is rounded; the last one completes the layer."""
        own = replace(expert, extra={})
        self._rounded.through_expert(own, self._rounded.weights(rounded, {}), {}, add=True)
        if expert.number + 1 == self._n_experts:
            self._rounded.join_experts(expert.layer, self._dense)
            self._rounded.states.save(states_file(expert.layer + 1))
            self._rounded.states.wait()

    def close(self) -> None:
        """Stop the threads and close the states' files without deleting them."""
        self._rounded.close()

    def __enter__(self) -> "RoundedStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def with_embedding(decoder: Decoder, embedding: EmbeddingRows) -> Decoder:
    """The decoder with another embedding."""
    weights, name = decoder.weights, decoder.embedding + ".weight"

    def rows(tensor: str, start: int, stop: int) -> Array:
        return embedding(start, stop) if tensor == name else weights.rows(tensor, start, stop)

    return Decoder(replace(weights, rows=rows), decoder.config, decoder.architecture)
