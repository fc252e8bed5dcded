"""The sums of two streams, the source's and that of rounded weights, against plain forwards with either weights."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.families import reference_logits
from quantkit.families.base.native import Native
from quantkit.forward import decoder_layer, feed_forward
from quantkit.forward.decoder_layer import DecoderLayer
from quantkit.forward.description import Experts
from quantkit.forward.layer import Context, Layer
from quantkit.forward.linears import Input, LayerLinears, Linear, alone
from quantkit.forward.parts import Form
from quantkit.forward.weights import Array, Weights, rows_of_whole
from quantkit.quant.fold import matrix
from quantkit.stream import asymmetric_sums as sums_module
from quantkit.stream import rounded as rounded_module
from quantkit.stream.asymmetric_sums import AsymmetricSums
from quantkit.stream.kept import KeptValues, kept_width
from quantkit.stream.rounded import RoundedStream
from quantkit.stream.statistics import HELD_OUT, Statistics
from quantkit.stream.stream import Stream, StreamOptions
from quantkit.stream.watcher import Tensors
from quantkit.workers import SERIAL
from tests.families.expected import write_checkpoint
from tests.stream.test_stream import tokens_for

# A dense model with norms after; turned matrices; parallel layers; scaled outputs; shared keys and per-layer
# embeddings; mixtures: without a shared expert, with one, with one of a gate, with stacked experts.
MODELS = [
    *("gemma2", "gpt2", "falcon-7b", "granite", "gemma4", "mixtral", "deepseek-moe", "qwen2moe"),
    *("falcon-h1", "cohere2moe", "granitemoe", "dbrx"),
    "qwen2moe-fused-no-biases",
]
HELD = ("falcon-7b", "granite", "mixtral", "deepseek-moe", "qwen2moe", "falcon-h1", "cohere2moe", "granitemoe", "dbrx")
"""Those whose values that are computed once stay in memory, and whose sums have held-out samples."""
SCALES = {"granite": 0.6, "granitemoe": 0.6}
"""Outputs are multiplied by this before they are added to the hidden states."""
COMPLETING = {
    "mixtral": "expert.",
    "deepseek-moe": "shared.down",
    "qwen2moe": "expert.",
    "cohere2moe": "shared.down",
    "granitemoe": "expert.",
    "dbrx": "expert.",
}
"""The inputs of `HELD` whose linears make up for errors of the hidden states, where it is not only `feed.down`."""
PROJECTED = ("gpt2", "falcon-7b", "gemma4", "mixtral", "granitemoe", "dbrx")
"""Those with linears of three times as many inputs as outputs: the sums are on the rows of the weights."""
EMBEDDED = ("gemma2", "falcon-7b", "gemma4", "mixtral")
"""Those whose embedding is rounded too."""
MULTIPLIED = {"cohere2moe": ("shared.down", 0.5), "falcon-h1": ("feed.down", 0.5859375)}
"""Inputs of a linear whose output is multiplied by this before it is an output of the feed-forward."""
Inputs = dict[str, np.ndarray]


def inputs_of(native: Native, tensors: Mapping[str, Array], monkeypatch: pytest.MonkeyPatch) -> Inputs:
    """The inputs of every linear over all samples, (tokens, width), in float64, of a plain forward with `tensors`.

    The outputs of the layers have their numbers as names, those of their experts the number and `fed`, and the weights
    of the experts the number and `share`.
    """
    inputs: dict[str, list[np.ndarray]] = defaultdict(list)
    real = Weights.linear

    def linear(self: Weights, name: str, x: Array, n_out: int, form: Form = Form(), index: int = 0) -> Array:
        for key in (name, alone(name, index)):
            inputs[key].append(x.astype(np.float64))
        return real(self, name, x, n_out, form, index)

    run = DecoderLayer.__call__

    def layer(self: DecoderLayer, x: Array, context: Context) -> Array:
        out = run(self, x, context)
        inputs[str(self.layer.number)].append(out.astype(np.float64))
        return out

    feed, route = DecoderLayer.feed, feed_forward.route

    def fed(self: DecoderLayer, middle: Array, x: Array, context: Context) -> Array:
        out = feed(self, middle, x, context)
        inputs[f"{self.layer.number}.fed"].append(out.astype(np.float64))
        return out

    def routed(part: Experts, layer: Layer, x: Array, tokens: Sequence[int]) -> tuple[np.ndarray, Array]:
        chosen, share = route(part, layer, x, tokens)
        inputs[f"{layer.number}.share"].append(share.astype(np.float64))
        return chosen, share

    whole = tensors.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(Weights, "linear", linear)
        patch.setattr(DecoderLayer, "__call__", layer)
        patch.setattr(DecoderLayer, "feed", fed)
        patch.setattr(feed_forward, "route", routed)
        for sample in tokens_for(native):
            reference_logits(whole, native.config, sample.tolist(), rows=rows_of_whole(whole), names=tensors.keys())
    return {name: np.concatenate(pieces) for name, pieces in inputs.items()}


class Watched:
    """Takes the sums of every input of a layer, whose weights are `noisy` in the second stream."""

    def __init__(self, streams: RoundedStream, noisy: Mapping[str, Array]) -> None:
        self.streams, self.noisy = streams, noisy
        self.sums: dict[tuple[int, str], AsymmetricSums] = {}

    def dense(self, layer: LayerLinears, tensors: Tensors, statistics: Mapping[str, Statistics]) -> Tensors:
        rounded = {name: self.noisy[name] for name in tensors}
        for entry in layer.inputs:
            if entry.expert is None:
                self.sums[layer.number, entry.key] = self.streams.sums(layer, entry, tensors, rounded)
        self.streams.advance(layer.number, rounded)
        return tensors

    def expert(
        self, layer: LayerLinears, expert: int, tensors: Tensors, statistics: Mapping[str, Statistics]
    ) -> Tensors:
        rounded, routed = {name: self.noisy[name] for name in tensors}, self.streams.expert(layer.number, expert)
        source = {**tensors, **self.streams.source.of_stacks(layer, expert)}
        for entry in layer.inputs:
            if entry.expert == expert:
                rounded |= {of.alone: matrix(self.noisy, of) for of in entry.linears if of.index is not None}
                self.sums[layer.number, entry.key] = self.streams.expert_sums(routed, entry, source, rounded)
        self.streams.advance_expert(routed, rounded)
        return tensors


def assert_sums(
    sums: AsymmetricSums, weights: np.ndarray, x: np.ndarray, seen: np.ndarray, residual: np.ndarray | None = None
) -> None:
    """`weights` (n_out, n_in): of a linear that reads the input; the product with D is read of them alone.

    residual: the error (n, n_out) of the hidden states that its output is added to.
    """
    assert sums.statistics.gram is not None
    assert sums.statistics.gram_tokens == len(seen)
    lengths = np.linalg.norm(seen, axis=0) + 1e-9
    np.testing.assert_allclose(
        sums.statistics.gram / np.outer(lengths, lengths), seen.T @ seen / np.outer(lengths, lengths), atol=2e-4
    )
    difference = x - seen
    scales = np.outer(np.linalg.norm(x, axis=0) + 1e-9, lengths)
    assert np.abs(difference.T @ seen / scales).max() > 1e-3 or np.abs(difference).max() < 1e-4
    if sums.cross.basis is None:
        np.testing.assert_allclose(sums.cross.sums / scales, difference.T @ seen / scales, atol=2e-4)
    else:
        assert len(sums.cross.sums) * 3 <= sums.cross.n_in
    scales = np.outer(np.linalg.norm(x @ weights.T, axis=0) + 1e-9, lengths)
    assert (sums.cross.residual is None) == (residual is None)
    wanted = difference @ weights.T if residual is None else difference @ weights.T + residual
    np.testing.assert_allclose(sums.cross.of(weights) / scales, wanted.T @ seen / scales, atol=3e-4)


def assert_held_out(
    sums: AsymmetricSums,
    weights: np.ndarray,
    x: np.ndarray,
    seen: np.ndarray,
    residual: np.ndarray | None,
    length: int,
) -> None:
    """The sum over every fourth sample, all of `length` tokens, whose Gram matrix is held out too."""
    held = (np.arange(len(x)) // length + 1) % HELD_OUT == 0
    x, seen = x[held], seen[held]
    wanted = (x - seen) @ weights.T + (0 if residual is None else residual[held])
    assert sums.statistics.held_out_tokens == len(x) > 0
    scale = np.linalg.norm(x @ weights.T) * np.linalg.norm(seen)
    assert sums.held_out is not None
    made = sums.held_out.of(weights)
    np.testing.assert_allclose(made / scale, wanted.T @ seen / scale, atol=3e-5)
    assert np.abs(made - sums.cross.of(weights)).max() > 0 or not np.abs(x - seen).max()


@pytest.mark.parametrize("name", MODELS)
def test_both_inputs_are_those_of_the_forwards(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounded_module, "EXPERT_FLOOR", 0)
    monkeypatch.setattr(sums_module, "_MASSIVE", 1e30)  # in small models some tokens of an expert are large
    kept = largest_kept(monkeypatch)
    random = np.random.default_rng(5)
    with open_checkpoint(str(write_checkpoint(name, tmp_path / name))) as checkpoint:
        native = Native(checkpoint)
        source = {key: np.array(native.whole(key), np.float32) for key in native.tensors}
        options = StreamOptions(hold_values=name in HELD)
        with Stream(native, tokens_for(native), tmp_path, threads=2, options=options) as stream:
            layers = [stream.linears(number) for number in range(native.decoder.n_layers)]
            of_layers = [linear for layer in layers for entry in layer.inputs for linear in entry.linears]
            noisy = dict(source)
            for key in sorted({linear.name + linear.form.weight for linear in of_layers if not linear.kept}):
                noisy[key] = source[key] + 0.1 * source[key].std() * normal(random, source[key].shape)
            embedding = None
            if name in EMBEDDED:
                key = native.decoder.embedding + ".weight"
                noisy[key] = source[key] + 0.1 * source[key].std() * normal(random, source[key].shape)
                embedding = lambda start, stop: noisy[key][start:stop]  # noqa: E731
            rounded = RoundedStream(stream, tmp_path / "rounded", hold_out=name in HELD, embedding=embedding)
            with rounded as streams:
                watched = Watched(streams, noisy)
                stream.embed()
                streams.embed()
                for layer in layers:
                    stream.layer(layer.number, watched)
        announced = max(kept_width(layer, native.decoder.width) for layer in layers) * tokens_for(native).size
        assert announced / 2 <= max(kept) <= announced
        plain, seen = (inputs_of(native, tensors, monkeypatch) for tensors in (source, noisy))
    compared = projected = with_residual = 0
    for layer in layers:
        for entry in layer.inputs:
            sums, linear = watched.sums[layer.number, entry.key], entry.linears[0]
            weights = matrix(source, linear)
            projected += sums.cross.basis is not None
            if entry.expert is None:
                residual = None
                if name in HELD and entry.key in ("feed.down", COMPLETING.get(name)):
                    residual = residual_of(layer.number, plain, seen, SCALES.get(name, 1))
                    key, factor = MULTIPLIED.get(name, ("", 1.0))
                    residual = residual / factor if entry.key == key else residual
                    with_residual += 1
                assert_sums(sums, weights, plain[linear.name], seen[linear.name], residual)
                if name in HELD:
                    length = tokens_for(native).shape[1]
                    assert_held_out(sums, weights, plain[linear.name], seen[linear.name], residual, length)
                else:
                    assert sums.held_out is None
            elif (received := alone(linear.name, linear.index or 0)) in seen:
                x, rows = of_expert(layer, entry.expert, entry.key, plain, seen, source)
                residual = None
                if COMPLETING.get(name) == "expert." and entry.key.endswith(".down"):
                    share = seen[f"{layer.number}.share"].sum(1, keepdims=True)
                    residual = (residual_of(layer.number, plain, seen, SCALES.get(name, 1)) / share)[rows]
                    with_residual += 1
                assert_sums(sums, weights, x, seen[received], residual)
            else:
                continue
            compared += 1
    assert compared >= 3 * len(layers)
    assert (projected > 0) == (name in PROJECTED)
    assert (with_residual >= len(layers)) == (name in HELD)


def normal(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers, float32."""
    return random.standard_normal(shape).astype(np.float32)


def largest_kept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that takes the number of values that a stream keeps of a layer, as it forgets them."""
    sizes: list[int] = []
    real = KeptValues.close

    def close(self: KeptValues) -> None:
        in_files = sum((self.folder / file).stat().st_size for file, _ in self._files.values())
        sizes.append(in_files // 4 + sum(x.size for x in self._held.values()))
        real(self)
        assert not list(self.folder.glob("kept-*"))

    monkeypatch.setattr(KeptValues, "close", close)
    return sizes


def of_expert(
    layer: LayerLinears, expert: int, key: str, plain: Inputs, seen: Inputs, source: Mapping[str, Array]
) -> tuple[np.ndarray, list[int]]:
    """The source's input of an expert for the tokens of the other model, by SwiGLU in numpy, and their rows."""
    gate, *others = layer.find(f"expert.{expert}").linears
    weights = [matrix(source, linear).astype(np.float64) for linear in (gate, *others[:1])]
    if not others:
        weights = np.split(weights[0], 2)  # one matrix for both
    # in parallel layers experts read what attention reads
    keys = {entry.key for entry in layer.inputs}
    feed = layer.find("feed" if "feed" in keys else "attention").linears[0].name
    received = seen[alone(gate.name, gate.index or 0)]
    rows = [int(np.abs(seen[feed] - row).max(axis=1).argmin()) for row in received]
    x = plain[feed][rows]
    if not key.endswith(".down"):
        return x, rows
    inner = x @ weights[0].T
    product: np.ndarray = inner / (1 + np.exp(-inner)) * (x @ weights[1].T)
    return product, rows


def residual_of(number: int, plain: Inputs, seen: Inputs, scale: float) -> np.ndarray:
    """What is left of the outputs of a layer without those of its feed-forward or experts, source less rounded."""
    before = [of[str(number)] / scale - of[f"{number}.fed"] for of in (plain, seen)]
    return np.asarray(before[0] - before[1])


@pytest.mark.parametrize("width", [6, 24])
def test_tokens_with_massive_activations_count_as_much_as_16_times_the_median(width: int) -> None:
    random = np.random.default_rng(width)
    weights = random.standard_normal((8, width)).astype(np.float32)
    x, seen = (random.standard_normal((40, width)).astype(np.float32) for _ in range(2))
    seen[0], x[3] = 300 * seen[0], 50 * x[3]
    tensors = {"w" + Form().weight: weights}
    entry = Input("feed", (Linear("w", width, 8),))
    sums = AsymmetricSums.of(entry, tensors, None, SERIAL, hold_out=False)
    sums.add([[x, seen]], (), SERIAL)
    energy = np.maximum((x * x).sum(1), (seen * seen).sum(1)).astype(np.float64)
    part = np.minimum(1, 16 * np.median(energy) / energy)
    assert list(np.flatnonzero(part < 0.9)) == [0, 3]
    expected = weights @ (part[:, None] * (x - seen)).T @ seen
    np.testing.assert_allclose(sums.cross.of(weights), expected, rtol=2e-4, atol=2e-3 * np.abs(expected).max())


def test_layers_of_several_streams_run_no_routed_expert_for_an_input_outside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hunyuan 4: a shared expert beside routed ones, which are read from the checkpoint one by one."""
    kept = largest_kept(monkeypatch)
    monkeypatch.setattr(decoder_layer, "mixture", lambda *_: pytest.fail("all routed experts run"))
    with open_checkpoint(str(write_checkpoint("hy-v4", tmp_path / "model"))) as checkpoint:
        native = Native(checkpoint)
        with Stream(native, tokens_for(native), tmp_path, threads=1) as stream:
            layers = [stream.linears(number) for number in range(native.decoder.n_layers)]
            with RoundedStream(stream, tmp_path / "rounded", hold_out=True) as streams:
                watched = Watched(streams, {name: np.array(native.whole(name), np.float32) for name in native.tensors})
                stream.embed()
                streams.embed()
                for layer in layers:
                    stream.layer(layer.number, watched)
        announced = max(kept_width(layer, native.decoder.width) for layer in layers) * tokens_for(native).size
    assert sum(key == "shared.down" for _, key in watched.sums) == 3
    assert max(kept) <= announced
