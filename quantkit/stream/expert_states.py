"""The routed experts of a layer, one at a time, each over the tokens that the router sends it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.arrays import Array, device, fetch, namespace, place
from quantkit.forward.decoder_layer import MIDDLE, DecoderLayer
from quantkit.forward.feed_forward import expert_part, feed_forward, shared
from quantkit.forward.layer import Context
from quantkit.forward.linears import LayerLinears
from quantkit.stream.layer import InputReachedError, LayerWeights, keys_of, stored_names
from quantkit.stream.on_device import statistics_of
from quantkit.stream.routing import EXPERT_FLOOR, RoutedExpert, Routes
from quantkit.stream.sample_states import SampleStates, groups
from quantkit.stream.states import states_file
from quantkit.stream.statistics import Statistics, add_inputs, samples_at_once
from quantkit.stream.watcher import Watcher

# Tokens that an expert processes at once, if enough are routed to it.
_EXPERT_TOKENS = 512


class ExpertStates(SampleStates):
    """Runs samples up to the routed experts of a layer, through each expert, and out of the layer."""

    def up_to_experts(self, number: int, weights: LayerWeights, statistics: Mapping[str, Statistics]) -> Routes:
        """Run a layer without its routed experts. The sum of their outputs starts as that of the shared expert."""
        chosen: dict[int, NDArray[np.int64]] = {}
        share: dict[int, Array] = {}

        def one(sample: int) -> dict[str, Array]:
            tap = self.tapped(weights, sample)
            layer = self.decoder.layer(number, tap)
            assert layer.experts is not None
            context = self.context(number, sample)
            middle, normed = layer.attend(self.read(states_file(number), sample), context)
            self.shared.save(number, sample, context)
            self.check_finite(middle, self.decoder.at(number), sample)
            routes, fed = self._before_experts(layer, middle, normed, context, beside=bool(statistics))
            chosen[sample], share[sample] = map(fetch, routes)
            self.states.write(MIDDLE, sample, middle)
            seen, begun = layer.before_experts(normed, fed)
            self.fed_states.write("seen", sample, seen)
            self.fed_states.write(self.fed_file(number), sample, begun)
            return tap.inputs

        self.gather(one, statistics)
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
        return groups(groups(range(n_samples), together), max(1, samples_at_once(width, n_tokens) // together))

    def _one_expert(
        self, number: int, linears: LayerLinears, expert: int, routes: Routes, watcher: Watcher | None
    ) -> None:
        inputs = tuple(entry for entry in linears.inputs if entry.expert == expert)
        # linears that are stacked in one tensor of all experts are read from the checkpoint
        alone = [entry for entry in inputs if all(linear.index is None for linear in entry.linears)]
        tensors = self.load_tensors(stored_names(alone) & self.native.tensors.keys())
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
        for entry in statistics.values():
            entry.finish()

    def expert_inputs(
        self, expert: RoutedExpert, samples: Sequence[int], weights: LayerWeights, *, add: bool = False
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run an expert on its tokens of some samples; the inputs of its linears, and those of the extra tokens.

        It runs up to the input `until` of the weights, if they have one.
        """
        experts = self.decoder.architecture.experts
        weighted_input = experts is not None and experts.weighted_input
        routed_to = [expert.tokens_of(sample) for sample in samples]
        states = [self.read_fed("seen", sample) for sample in samples]
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
                    fed = self.read_fed(self.fed_file(expert.layer), sample)
                    fed[rows, : part.shape[1]] += part if weighted_input else part * place(factors, device(part))
                    self.fed_states.write(self.fed_file(expert.layer), sample, fed)
        extra = [x[expert.extra[sample]] for x, sample in zip(states, samples, strict=True) if sample in expert.extra]
        if extra:
            self._feed_forward(expert, others, concatenate(extra))
        return tap.inputs, others.inputs

    def _feed_forward(self, expert: RoutedExpert, tap: LayerWeights, x: Array) -> Array:
        layer = self.decoder.layer(expert.layer, tap)
        assert layer.experts is not None
        part, index = expert_part(layer.experts, layer.layer, expert.number)
        try:
            return feed_forward(part, layer.layer, x[:, : layer.expert_width], index)
        except InputReachedError as reached:
            assert tap.until is not None
            tap.inputs[tap.until] = reached.x
            return reached.x

    def _after_experts(self, number: int, weights: LayerWeights, statistics: Mapping[str, Statistics]) -> None:
        """Sum the statistics of what the linear back from a latent reads, without a change of the states."""

        def one(sample: int) -> dict[str, Array]:
            tap = weights.tapped()
            self.decoder.layer(number, tap).after_experts(self.read_fed(self.fed_file(number), sample))
            return tap.inputs

        self.gather(one, statistics)

    def join_experts(self, number: int, weights: LayerWeights) -> None:
        """Write the input states of the next layer from the outputs of the experts, which they hold so far."""

        def one(sample: int) -> None:
            layer = self.decoder.layer(number, weights)
            fed = layer.after_experts(self.read_fed(self.fed_file(number), sample))
            x = layer.join(self.read(MIDDLE, sample), fed, self.decoder.context(self.tokens[sample].tolist()))
            self.check_finite(x, self.decoder.at(number), sample)
            self.states.write(states_file(number + 1), sample, x)

        self.workers.map(one, range(len(self.tokens)))
