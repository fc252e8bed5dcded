"""The streamed forward: all samples run through a checkpoint layer by layer, in the memory of one layer.

A layer's tensors are read once. All samples go through the layer, and statistics of the linears' inputs are summed.
The watcher then receives the tensors and the statistics, and both are freed. Routed experts are processed one at a
time, each over the tokens that the router sends it.
"""

from collections.abc import Mapping
from dataclasses import replace

from quantkit.forward.arrays import Array
from quantkit.forward.devices import release_freed_memory as release_device_memory
from quantkit.forward.feed_forward import expert_count
from quantkit.forward.linears import AFTER_EXPERTS
from quantkit.machine import release_freed_memory
from quantkit.stream.expert_states import ExpertStates
from quantkit.stream.layer import InputReachedError, LayerWeights, keys_of
from quantkit.stream.on_device import statistics_of
from quantkit.stream.sample_states import StreamOptions as StreamOptions
from quantkit.stream.states import states_file
from quantkit.stream.statistics import Statistics
from quantkit.stream.watcher import Tensors, Watcher


class Stream(ExpertStates):
    """Runs samples through the layers, see `SampleStates`."""

    def layer(self, number: int, watcher: Watcher | None = None) -> None:
        """Run all samples through one layer. The watcher is called after the layer and after each expert.

        Without a watcher no statistics are collected, and experts that receive no token are not read.
        Raises CalibrationError with the layer's name when a hidden state is not finite.
        """
        self.begin(number)
        linears = self.linears(number)
        late = tuple(entry for entry in linears.inputs if entry.key == AFTER_EXPERTS and watcher)
        first = linears.without(late)
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

    def input_of(self, number: int, key: str, weights: LayerWeights, sample: int, x: Array | None = None) -> Array:
        """The input `key` of a layer with these weights, whose `until` it is: (n_tokens, n_in).

        x: other hidden states than the stream's enter the layer; then none of its values are kept.
        """
        return self.input_and_states(number, key, weights, sample, x)[0]

    def input_and_states(
        self, number: int, key: str, weights: LayerWeights, sample: int, x: Array | None = None
    ) -> tuple[Array, Array]:
        """As `input_of`, and the hidden states (n_tokens, hidden) that the layer has made by then.

        These are the states after attention for all later inputs, in layers of one stream of states.
        """
        is_other, context = x is not None, self.context(number, sample)
        tap = weights.tapped(None) if is_other else self.tapped(weights, sample)
        layer = self.decoder.layer(number, tap)
        x = self.read(states_file(number), sample) if x is None else x
        try:
            if layer.experts is None and (layer.architecture.altup or layer.architecture.hyper_connections):
                layer(x, context)
            else:
                x, normed = layer.attend(x, context)
                if layer.experts is None:
                    layer.join(x, layer.feed(x, normed, context), context)
                else:
                    self._before_experts(layer, x, normed, context)
        except InputReachedError as reached:
            self.check_finite(reached.x, self.decoder.at(number), sample)
            if not is_other:
                self.shared.save(number, sample, context)
            return reached.x, x
        raise ValueError(f"layer {number} has no input {key}")

    def advance(self, number: int, tensors: Tensors) -> None:
        """Run all samples through layer `number`, which has no routed experts, with the weights `tensors`."""
        self._through(number, self.weights(tensors, {}), {})
        self.states.save(states_file(number + 1))
        self.states.wait()

    def _through(self, number: int, weights: LayerWeights, statistics: Mapping[str, Statistics]) -> None:
        def one(sample: int) -> dict[str, Array]:
            tap = self.tapped(weights, sample)
            context = self.context(number, sample)
            x = self.decoder.layer(number, tap)(self.read(states_file(number), sample), context)
            self.shared.save(number, sample, context)
            self.check_finite(x, self.decoder.at(number), sample)
            self.states.write(states_file(number + 1), sample, x)
            return tap.inputs

        self.gather(one, statistics)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
