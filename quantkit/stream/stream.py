"""The streamed forward: all samples run through a checkpoint layer by layer, in the memory of one layer.

A layer's tensors are read once. All samples go through the layer, and statistics of the linears' inputs are summed.
The watcher then receives the tensors and the statistics, and both are freed. Routed experts are processed one at a
time, each over the tokens that the router sends it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CalibrationError
from quantkit.families.base.native import Source
from quantkit.forward.allocator import keep_freed_memory
from quantkit.forward.arrays import Array, device, fetch, namespace, place
from quantkit.forward.decoder_layer import DecoderLayer
from quantkit.forward.devices import release_freed_memory as release_device_memory
from quantkit.forward.feed_forward import expert_count, expert_part, feed_forward, shared
from quantkit.forward.layer import Context
from quantkit.forward.layer_linears import layer_linears
from quantkit.forward.linears import AFTER_EXPERTS, LayerLinears
from quantkit.machine import release_freed_memory
from quantkit.stream.layer import InputReachedError, LayerWeights, keys_of, names_outside_experts, stored_names
from quantkit.stream.on_device import ReadAhead, layer_weights, open_states, statistics_of
from quantkit.stream.routing import EXPERT_FLOOR, RoutedExpert, Routes
from quantkit.stream.shared import SharedStates
from quantkit.stream.states import states_file
from quantkit.stream.statistics import Statistics, add_inputs, samples_at_once
from quantkit.stream.watcher import Tensors, Watcher
from quantkit.workers import Workers

_T = TypeVar("_T")

# Tokens that an expert processes at once, if enough are routed to it.
_EXPERT_TOKENS = 512


@dataclass(frozen=True)
class StreamOptions:
    """How samples run through the layers.

    `gram`: sum Gram matrices, not only squares. `propagate`: the next layer receives the output of the quantized
    layer, not of the source's. `device`: the torch device, None for numpy (see `find_device`). `sample_name`: the word
    for a sample in errors. `hold_states`: see `open_states`.
    """

    gram: bool = True
    propagate: bool = False
    device: Any = None
    sample_name: str = "calibration sample"
    hold_states: bool | None = None


class Stream:
    """Runs `tokens` (int32, (n_samples, n_tokens)) through the layers of `native`.

    `folder` holds the hidden states between layers.
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
        self.native, self.tokens, self.options = native, tokens, options
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
        self.reader = ReadAhead(self._load, self._names, self.decoder.n_layers, ahead=ahead)
        self.shared = SharedStates(self.decoder, folder, len(tokens), tokens.shape[1], options.device)
        keep_freed_memory()
        self.workers = Workers(self.threads)

    def linears(self, number: int) -> LayerLinears:
        """The linears of a layer."""
        return layer_linears(self.native.architecture, self.native.config, number, self.native.tensors)

    def embed(self) -> None:
        """Write the input states of the first layer. Raises CalibrationError when a state is not finite."""

        def one(sample: int) -> None:
            x = self.decoder.embed(self.tokens[sample].tolist())
            self._check_finite(x, "the embedding", sample)
            self.states.write(states_file(0), sample, x)

        self.workers.map(one, range(len(self.tokens)))

    def can_start_at(self, number: int) -> bool:
        """Whether the input states of layer `number` exist."""
        return self.states.holds(states_file(number))

    def layer(self, number: int, watcher: Watcher | None = None) -> None:
        """Run all samples through one layer. The watcher is called after the layer and after each expert.

        Without a watcher no statistics are collected, and experts that receive no token are not read.
        Raises CalibrationError with the layer's name when a hidden state is not finite.
        """
        linears = self.linears(number)
        late = tuple(entry for entry in linears.inputs if entry.key == AFTER_EXPERTS and watcher)
        first = replace(linears, inputs=tuple(entry for entry in linears.inputs if entry not in late))
        dense = tuple(entry for entry in first.inputs if entry.expert is None and watcher)
        tensors = self.reader.layer(number)
        weights = self.weights(tensors, keys_of(dense), halves=bool(watcher))
        layer = self.decoder.layer(number, weights)
        statistics = statistics_of(dense, weights, self.options.device, gram=self.options.gram)
        if layer.experts is None:
            self._through(number, weights, statistics)
            if not self.options.propagate:
                self.states.save(states_file(number + 1))
            release_device_memory(self.options.device)
            quantized = watcher.dense(linears, tensors, statistics) if watcher else tensors
            release_freed_memory()
            if self.options.propagate:
                self._through(number, self.weights(quantized, {}), {})
                self.states.save(states_file(number + 1))
            self.states.wait()
            return
        routes = self.up_to_experts(number, weights, statistics)
        release_device_memory(self.options.device)
        quantized = watcher.dense(first, tensors, statistics) if watcher else tensors
        if self.options.propagate:
            weights = self.weights(quantized, {})
            routes = self.up_to_experts(number, weights, {})
        for expert in range(expert_count(layer.experts, layer.layer)):
            if watcher or (routes.chosen == expert).any():
                self._one_expert(number, linears, expert, routes, watcher)
        if watcher and late:
            tapped = self.weights(quantized if self.options.propagate else tensors, keys_of(late), halves=True)
            statistics = statistics_of(late, tapped, self.options.device, gram=self.options.gram)
            self._after_experts(number, tapped, statistics)
            quantized = watcher.dense(replace(linears, inputs=late, folds=()), tensors, statistics)
            weights = self.weights(quantized, {}) if self.options.propagate else weights
        self.join_experts(number, weights)
        self.states.save(states_file(number + 1))
        self.states.wait()

    def input_of(self, number: int, key: str, weights: LayerWeights, sample: int) -> Array:
        """The input `key` of a layer with these weights, whose `until` it is: (n_tokens, n_in)."""
        context, layer = self._context(number, sample), self.decoder.layer(number, weights)
        x = self._read(states_file(number), sample)
        try:
            if layer.experts is None:
                layer(x, context)
            else:
                self._before_experts(layer, *layer.attend(x, context), context)
        except InputReachedError as reached:
            self._check_finite(reached.x, self.decoder.at(number), sample)
            return reached.x
        raise ValueError(f"layer {number} has no input {key}")

    def advance(self, number: int, tensors: Tensors) -> None:
        """Run all samples through layer `number`, which has no routed experts, with the weights `tensors`."""
        self._through(number, self.weights(tensors, {}), {})
        self.states.save(states_file(number + 1))
        self.states.wait()

    def _through(self, number: int, weights: LayerWeights, statistics: Mapping[str, Statistics]) -> None:
        def one(sample: int) -> dict[str, Array]:
            tap = weights.tapped()
            context = self._context(number, sample)
            x = self.decoder.layer(number, tap)(self._read(states_file(number), sample), context)
            self.shared.save(number, sample, context)
            self._check_finite(x, self.decoder.at(number), sample)
            self.states.write(states_file(number + 1), sample, x)
            return tap.inputs

        self._gather(one, statistics)

    def up_to_experts(self, number: int, weights: LayerWeights, statistics: Mapping[str, Statistics]) -> Routes:
        """Run a layer without its routed experts. The sum of their outputs starts as that of the shared expert."""
        chosen: dict[int, NDArray[np.int64]] = {}
        share: dict[int, Array] = {}

        def one(sample: int) -> dict[str, Array]:
            tap = weights.tapped()
            layer = self.decoder.layer(number, tap)
            assert layer.experts is not None
            context = self._context(number, sample)
            middle, normed = layer.attend(self._read(states_file(number), sample), context)
            self.shared.save(number, sample, context)
            self._check_finite(middle, self.decoder.at(number), sample)
            routes, fed = self._before_experts(layer, middle, normed, context, beside=bool(statistics))
            chosen[sample], share[sample] = map(fetch, routes)
            self.states.write("middle", sample, middle)
            seen, begun = layer.before_experts(normed, fed)
            self.fed_states.write("seen", sample, seen)
            self.fed_states.write(self._fed_file(number), sample, begun)
            return tap.inputs

        self._gather(one, statistics)
        samples = range(len(self.tokens))
        return Routes(np.stack([chosen[sample] for sample in samples]), np.stack([share[sample] for sample in samples]))

    @staticmethod
    def _before_experts(
        layer: DecoderLayer, middle: Array, normed: Array, context: Context, *, beside: bool = True
    ) -> tuple[tuple[NDArray[np.int64], Array], Array | None]:
        """The routes of a sample, and the output of the shared expert. `beside`: run what is beside the experts too."""
        assert layer.experts is not None
        routes = layer.route(middle, normed, context)
        if layer.beside and beside:
            layer.dense(middle)
        return routes, shared(layer.experts, layer.layer, normed)

    def groups_of(self, expert: RoutedExpert, width: int) -> list[Sequence[Sequence[int]]]:
        """Batches of groups of samples that `expert_inputs` takes at once, where `width` values wait for each token."""
        n_samples, n_tokens = self.tokens.shape
        # the number of samples that gives an expert a few hundred tokens at once
        together = min(max(1, _EXPERT_TOKENS * n_samples // max(1, expert.n_tokens)), n_samples)
        return _groups(_groups(range(n_samples), together), max(1, samples_at_once(width, n_tokens) // together))

    def _one_expert(
        self, number: int, linears: LayerLinears, expert: int, routes: Routes, watcher: Watcher | None
    ) -> None:
        inputs = tuple(entry for entry in linears.inputs if entry.expert == expert)
        # linears that are stacked in one tensor of all experts are read from the checkpoint
        alone = [entry for entry in inputs if all(linear.index is None for linear in entry.linears)]
        tensors = self._load(stored_names(alone) & self.native.tensors.keys())
        recorded = inputs if watcher else ()
        weights = self.weights(tensors, keys_of(recorded), halves=bool(watcher))
        statistics = statistics_of(recorded, weights, self.options.device, gram=self.options.gram)
        extra = routes.others(expert, EXPERT_FLOOR) if self.options.gram and watcher else {}
        routed = RoutedExpert(number, expert, routes, extra)
        self.through_expert(routed, weights, statistics, add=not self.options.propagate)
        quantized = watcher.expert(linears, expert, tensors, statistics) if watcher else tensors
        if self.options.propagate:
            self.through_expert(replace(routed, extra={}), self.weights(quantized, {}), {}, add=True)

    def through_expert(
        self, expert: RoutedExpert, weights: LayerWeights, statistics: Mapping[str, Statistics], *, add: bool
    ) -> None:
        """Run an expert on its tokens, and on its extra ones, which count in the Gram matrix only.

        `add`: add the expert's outputs to the next states.
        """
        width = sum(len(entry.squares) for entry in statistics.values())

        def some(samples: Sequence[int]) -> tuple[dict[str, Array], dict[str, Array]]:
            return self.expert_inputs(expert, samples, weights, add=add)

        for batch in self.groups_of(expert, width):
            results = self.workers.map(some, batch)
            routed, others = ([taps[kind] for taps in results] for kind in (0, 1))
            add_inputs(statistics, routed, others, self.workers)

    def expert_inputs(
        self, expert: RoutedExpert, samples: Sequence[int], weights: LayerWeights, *, add: bool = False
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run an expert on its tokens of some samples; the inputs of its linears, and those of the extra tokens."""
        experts = self.decoder.architecture.experts
        weighted_input = experts is not None and experts.weighted_input
        routed_to = [expert.tokens_of(sample) for sample in samples]
        states = [self._read_fed("seen", sample) for sample in samples]
        tap, others = weights.tapped(), weights.tapped()
        concatenate = namespace(states[0]).concatenate
        weights_of = [
            expert.routes.share[sample, rows, slots][:, None]
            for sample, (rows, slots) in zip(samples, routed_to, strict=True)
        ]
        routed = concatenate([x[rows] for x, (rows, _) in zip(states, routed_to, strict=True)])
        if weighted_input:
            routed = routed * place(np.concatenate(weights_of), device(routed))
        if len(routed):
            answers, first = self._feed_forward(expert, tap, routed), 0
            for sample, (rows, _), factors in zip(samples, routed_to, weights_of, strict=True):
                part, first = answers[first : first + len(rows)], first + len(rows)
                if add and len(rows):
                    fed = self._read_fed(self._fed_file(expert.layer), sample)
                    fed[rows, : part.shape[1]] += part if weighted_input else part * place(factors, device(part))
                    self.fed_states.write(self._fed_file(expert.layer), sample, fed)
        extra = [x[expert.extra[sample]] for x, sample in zip(states, samples, strict=True) if sample in expert.extra]
        if extra:
            self._feed_forward(expert, others, concatenate(extra))
        return tap.inputs, others.inputs

    def _feed_forward(self, expert: RoutedExpert, tap: LayerWeights, x: Array) -> Array:
        layer = self.decoder.layer(expert.layer, tap)
        assert layer.experts is not None
        part, index = expert_part(layer.experts, layer.layer, expert.number)
        return feed_forward(part, layer.layer, x[:, : layer.expert_width], index)

    def _after_experts(self, number: int, weights: LayerWeights, statistics: Mapping[str, Statistics]) -> None:
        """Sum the statistics of what the linear back from a latent reads, without a change of the states."""

        def one(sample: int) -> dict[str, Array]:
            tap = weights.tapped()
            self.decoder.layer(number, tap).after_experts(self._read_fed(self._fed_file(number), sample))
            return tap.inputs

        self._gather(one, statistics)

    def join_experts(self, number: int, weights: LayerWeights) -> None:
        """Write the input states of the next layer from the outputs of the experts, which they hold so far."""

        def one(sample: int) -> None:
            layer = self.decoder.layer(number, weights)
            fed = layer.after_experts(self._read_fed(self._fed_file(number), sample))
            x = layer.join(self._read("middle", sample), fed, self.decoder.context(self.tokens[sample].tolist()))
            self._check_finite(x, self.decoder.at(number), sample)
            self.states.write(states_file(number + 1), sample, x)

        self.workers.map(one, range(len(self.tokens)))

    def _gather(self, one: Callable[[int], dict[str, Array]], statistics: Mapping[str, Statistics]) -> None:
        """Call `one` for every sample, and sum its taps in the order of samples."""
        width = sum(len(entry.squares) for entry in statistics.values())
        for batch in _groups(range(len(self.tokens)), samples_at_once(width, self.tokens.shape[1])):
            add_inputs(statistics, self.workers.map(one, batch), workers=self.workers)
            # Each thread frees into an arena of its own, which keeps its pages: peaks of phases would add up.
            release_freed_memory()

    def _context(self, number: int, sample: int) -> Context:
        """What layer `number` needs of a sample beside its hidden states."""
        context = self.decoder.context(self.tokens[sample].tolist())
        self.shared.load(number, sample, context)
        return context

    def _read(self, name: str, sample: int) -> Array:
        x: Array = place(self.states.read(name, sample), self.options.device)
        return x

    def _read_fed(self, name: str, sample: int) -> Array:
        x: Array = place(self.fed_states.read(name, sample), self.options.device)
        return x

    def _fed_file(self, number: int) -> str:
        """The file in which the outputs of a layer's experts are summed; the next states take its place."""
        return states_file(number + 1) if self.fed_states is self.states else "fed"

    def _load(self, names: Iterable[str]) -> Tensors:
        return {name: np.array(self.native.whole(name), np.float32) for name in sorted(names)}

    def _names(self, number: int) -> list[str]:
        return names_outside_experts(self.native, self.linears(number))

    def weights(self, tensors: Tensors, keys: Mapping[tuple[str, int], str], *, halves: bool = False) -> LayerWeights:
        """The tensors of a layer on the device, see `layer_weights`."""
        return layer_weights(self.native, tensors, keys, self.options.device, halves=halves)

    def _check_finite(self, x: Array, stage: str, sample: int) -> None:
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

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _groups(items: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
