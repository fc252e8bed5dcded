"""The samples through the rounded layers, beside the source's: what each rounded matrix receives, and should have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.forward.arrays import Array, device, namespace, place
from quantkit.forward.decoder_layer import MIDDLE
from quantkit.forward.feed_forward import expert_count
from quantkit.forward.forward import Decoder
from quantkit.forward.linears import Input, LayerLinears
from quantkit.machine import release_freed_memory
from quantkit.quant.cross import Cross, basis_of
from quantkit.quant.fold import is_loaded, matrix
from quantkit.stream.layer import keys_of
from quantkit.stream.routing import EXPERT_FLOOR, RoutedExpert
from quantkit.stream.states import states_file
from quantkit.stream.statistics import WIDE_BLOCK, Statistics, samples_at_once
from quantkit.stream.stream import Stream
from quantkit.stream.watcher import Tensors
from quantkit.texts.mixed import HELD_OUT
from quantkit.workers import SERIAL, Workers, parts

Pairs = Sequence[Sequence[Array]]
EmbeddingRows = Callable[[int, int], Array]
"""(start, stop) -> these rows of an embedding, float32 (stop - start, hidden)."""

# Samples that are summed together: copies of their inputs stay in the cache of the CPU.
_TOGETHER = 4
_ROWS = 512  # of a narrow sum that one thread adds to
# A token of more than this many times the median energy of a sample's counts less, see `_limited`.
_MASSIVE = 16
# The sum of a token's expert weights counts as at least this part of the median: the states' error is divided by it.
_LEAST_SHARE = np.float32(0.3)


@dataclass(frozen=True)
class AsymmetricSums:
    """Sums over the tokens of an input x of the source and the same input x~ of the rounded model.

    `statistics`: of x~. `cross`: D, the sum of (x - x~) x~', where the Gram matrix is, with less of the tokens with
    massive activations, and S for the last input of a layer. `held_out`: that of the samples which `statistics` holds
    out, a part of `cross`, where it is used.
    """

    statistics: Statistics
    cross: Cross
    held_out: Cross | None = None


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
        sums = _Sums.of(entry, source, to, workers, hold_out=self._hold_out, residual=has_residual)

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
        sums = _Sums.of(entry, source, to, workers, hold_out=self._hold_out, residual=has_residual)

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
        states, rounded_states = _limited(states, rounded_states)
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


@dataclass(frozen=True)
class _Sums(AsymmetricSums):
    """Sums that grow by pairs (x, x~), each (n, width)."""

    @classmethod
    def of(
        cls, entry: Input, source: Tensors, to: Any, workers: Workers, *, hold_out: bool, residual: bool = False
    ) -> "_Sums":
        """Empty sums of an input on the device `to`. `source`: tensors, those of its linears too if they are loaded."""
        basis = None
        if all(is_loaded(source, linear) for linear in entry.linears):
            weights = [place(matrix(source, linear), to) for linear in entry.linears]
            basis = basis_of(weights, workers if to is None else SERIAL)
        statistics = Statistics.of(entry.width, gram=True, to=to)
        shape = entry.width if basis is None else len(basis), entry.width
        of_residual = (entry.linears[0].n_out, entry.width) if residual else None

        def zeros(shape: tuple[int, int]) -> Array:
            made: Array = place(np.zeros(shape, np.float32), to)
            return made

        crosses = [Cross(zeros(shape), basis, of_residual and zeros(of_residual)) for _ in range(1 + hold_out)]
        return cls(statistics, *crosses)

    def add(self, pairs: Pairs, extra: Pairs, workers: Workers) -> None:
        """Count the tokens of `pairs`; those of `extra` count as in `Statistics.add`, and in `cross`."""
        pairs, extra = ([_limited(*pair) for pair in some] for some in (pairs, extra))
        on_device, is_wide = device(self.cross.sums) is not None, self.statistics.is_wide
        together = max(1, len(pairs)) if on_device else 1 if is_wide else _TOGETHER
        if self.cross.residual is not None:
            rows = list(parts(len(self.cross.residual), _ROWS))
            (SERIAL if on_device else workers).map(partial(self._add_residual, pairs, extra), rows)
        chunks, first = list(parts(len(pairs), together)), self.statistics.pieces + 1
        groups = [pairs[some] for some in chunks]
        holds = self.held_out is not None
        numbered = [(holds and (first + number) % HELD_OUT == 0, pair) for number, pair in enumerate(pairs)]
        by_use: list[tuple[bool, Pairs]] = [
            (use, [pair for held, pair in numbered[some] if held == use]) for some in chunks for use in (True, False)
        ]
        by_use.append((False, extra))
        if on_device:
            self._count(groups, extra, SERIAL)
            self._add_rows(by_use, slice(None))
        elif is_wide:
            self._count(groups, extra, workers)
            rows = list(parts(len(self.cross.sums), WIDE_BLOCK if self.cross.basis is None else _ROWS))
            for some in by_use:
                workers.map(partial(self._add_rows, [some]), rows)
        else:
            rows = list(parts(len(self.cross.sums), _ROWS))
            jobs = [
                partial(self._count, groups, extra, SERIAL),
                *(partial(self._add_rows, by_use, some) for some in rows),
            ]
            workers.map(lambda job: job(), jobs)

    def _count(self, groups: Sequence[Pairs], extra: Pairs, workers: Workers) -> None:
        for group in groups:
            self.statistics.add([pair[1] for pair in group], (), workers)
        self.statistics.add((), [pair[1] for pair in extra], workers)

    def _add_residual(self, pairs: Pairs, extra: Pairs, rows: slice) -> None:
        """Add to rows of S, see `add`."""
        of_all, of_held_out = self.cross.residual, None if self.held_out is None else self.held_out.residual
        assert of_all is not None
        for number, (_, seen, residual) in enumerate(pairs, start=self.statistics.pieces + 1):
            product = residual[:, rows].T @ seen
            of_all[rows] += product
            if of_held_out is not None and number % HELD_OUT == 0:
                of_held_out[rows] += product
        for _, seen, residual in extra:
            of_all[rows] += residual[:, rows].T @ seen

    def _add_rows(self, groups: Sequence[tuple[bool, Pairs]], rows: slice) -> None:
        """Add to rows of `cross`, and of `held_out` the groups that are."""
        xp, basis = namespace(self.cross.sums), self.cross.basis
        for is_held_out, group in groups:
            if not group:
                continue
            if basis is None:
                difference = [x[:, rows] - seen[:, rows] for x, seen, *_ in group]
            else:
                difference = [(x - seen) @ basis[rows].T for x, seen, *_ in group]
            inputs = [seen for _, seen, *_ in group]
            d, x = (of[0] if len(of) == 1 else xp.concatenate(of) for of in (difference, inputs))
            products = d.T @ x
            sums = self.cross.sums
            sums[rows] += products
            if is_held_out and self.held_out is not None:
                held_out = self.held_out.sums
                held_out[rows] += products


def with_embedding(decoder: Decoder, embedding: EmbeddingRows) -> Decoder:
    """The decoder with another embedding."""
    weights, name = decoder.weights, decoder.embedding + ".weight"

    def rows(tensor: str, start: int, stop: int) -> Array:
        return embedding(start, stop) if tensor == name else weights.rows(tensor, start, stop)

    return Decoder(replace(weights, rows=rows), decoder.config, decoder.architecture)


def _limited(x: Array, seen: Array, *residual: Array) -> tuple[Array, ...]:
    """A pair (x, x~), each (n, width), where tokens with massive activations have an x nearer to x~, and less residual.

    A model's first token, and in some models delimiters, may have thousands of times the energy of other tokens (Sun et
    al. 2024, arXiv 2402.17762). D would be theirs alone, and what corrects their errors adds a part of itself to other
    tokens. With x - x~ reduced, W D H^-1 corrects the others and leaves these tokens' outputs as they are.
    """
    if not len(x):
        return x, seen, *residual
    part = _part(x, seen)
    if part is None:
        return x, seen, *residual
    return seen + part * (x - seen), seen, *(part * r for r in residual)


def _part(x: Array, seen: Array) -> Array | None:
    """How much each token's difference of x and x~ counts, (n, 1); None if all count in full."""
    xp = namespace(x)
    energy = xp.maximum((x * x).sum(1), (seen * seen).sum(1))
    limit = _MASSIVE * float(xp.median(energy))
    if not 0 < limit < float(energy.max()):
        return None
    part: Array = (limit / xp.clip(energy, limit, None))[:, None]
    return part
