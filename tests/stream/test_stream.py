"""What the stream gathers against the forward itself, which is run plainly over the same tokens with its inputs traced.

Traced arrays are summed in float64. The traced forward (`reference_logits`) is held against transformers elsewhere.
"""

import os
import subprocess
import sysconfig
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.families import reference_logits
from quantkit.families.base.native import Native
from quantkit.forward.linears import LayerLinears
from quantkit.forward.parts import Form
from quantkit.forward.weights import Array, Weights
from quantkit.stream import expert_states as stream_module
from quantkit.stream.routing import Routes
from quantkit.stream.states import States
from quantkit.stream.statistics import Statistics
from quantkit.stream.stream import Stream, StreamOptions
from quantkit.stream.watcher import Tensors
from tests.families.expected import write_checkpoint
from tests.helpers.peer import REPOSITORY, peer_converter

# A dense model; a mixture; one with a gated shared expert and fused experts; latent attention, a first dense layer and
# shared experts; turned matrices; parallel layers of one norm; layers that use keys and values of an earlier one, and
# per-layer embeddings; experts beside the feed-forward; linear attention and experts within a latent; a router that
# reads what enters the layer.
MODELS = ["gemma2", "mixtral", "qwen2moe-fused-no-biases", "deepseek-v2-lite", "gpt2", "falcon-7b"]
MODELS += ["gemma4", "gemma4-experts", "kimi-k3", "smallthinker"]
# Norms and delta rules make the order of float32 sums count for more than elsewhere (2e-5).
DRIFT = {"kimi-k3": 1e-3}
MIXTURES = ["mixtral", "qwen2moe-fused-no-biases", "deepseek-v2-lite"]
SHAPE = (5, 18)

Inputs = dict[tuple[str, int], list[np.ndarray]]


@dataclass
class Kept:
    """A watcher that keeps what it is shown: by layer, the statistics and the tensors."""

    statistics: dict[int, dict[str, Statistics]] = field(default_factory=lambda: defaultdict(dict))
    tensors: dict[int, Tensors] = field(default_factory=lambda: defaultdict(dict))

    def dense(self, layer: LayerLinears, tensors: Tensors, statistics: Mapping[str, Statistics]) -> Tensors:
        self.statistics[layer.number] |= statistics
        self.tensors[layer.number] |= tensors
        return tensors

    def expert(
        self, layer: LayerLinears, expert: int, tensors: Tensors, statistics: Mapping[str, Statistics]
    ) -> Tensors:
        return self.dense(layer, tensors, statistics)


def tokens_for(native: Native) -> np.ndarray:
    return np.random.default_rng(1).integers(3, int(native.config["vocab_size"]), SHAPE).astype(np.int32)


def streamed(
    native: Native, folder: Path, options: StreamOptions = StreamOptions()
) -> tuple[Kept, list[LayerLinears], np.ndarray]:
    """All layers through the stream; what a watcher saw, the layers, the last states."""
    tokens, kept = tokens_for(native), Kept()
    folder.mkdir(exist_ok=True)
    with Stream(native, tokens, folder, threads=2, options=options) as stream:
        stream.embed()
        count = native.decoder.n_layers
        for number in range(count):
            stream.layer(number, kept)
        layers = [stream.linears(number) for number in range(count)]
        last = np.stack([stream.states.read(f"states-{count % 2}", sample) for sample in range(len(tokens))])
    return kept, layers, last


def traced(native: Native, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    """The inputs of every linear over all samples, each (tokens, width), in float64."""
    inputs: Inputs = defaultdict(list)
    real = Weights.linear

    def linear(self: Weights, name: str, x: Array, n_out: int, form: Form = Form(), index: int = 0) -> Array:
        inputs[name, index].append(x.astype(np.float64))
        return real(self, name, x, n_out, form, index)

    with monkeypatch.context() as patch:
        patch.setattr(Weights, "linear", linear)
        for sample in tokens_for(native):
            reference_logits(
                native.whole, native.config, sample.tolist(), rows=native.rows, names=native.tensors.keys()
            )
    return inputs


def together(pieces: list[np.ndarray], width: int) -> np.ndarray:
    return np.concatenate([np.zeros((0, width)), *pieces])


def assert_gram(actual: np.ndarray, x: np.ndarray, drift: float = 2e-5) -> None:
    """Within float32's rounding of a sum, relative to the lengths of the two columns."""
    expected = x.T @ x
    lengths = np.sqrt(np.diagonal(expected)) + 1e-9
    assert (np.abs(actual - expected) <= drift * np.outer(lengths, lengths) + 1e-12).all()


@pytest.mark.parametrize("name", MODELS)
def test_gram_matrices_and_squares_are_those_of_the_forwards_own_inputs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "EXPERT_FLOOR", 0)
    with open_checkpoint(str(write_checkpoint(name, tmp_path / name))) as checkpoint:
        native = Native(checkpoint)
        kept, layers, _ = streamed(native, tmp_path / "work")
        inputs = traced(native, monkeypatch)
    compared, drift = 0, DRIFT.get(name, 2e-5)
    for layer in layers:
        assert kept.statistics[layer.number].keys() == {group.key for group in layer.inputs}
        for group in layer.inputs:
            sums = kept.statistics[layer.number][group.key]
            for linear in group.linears:
                x = together(inputs[linear.name, linear.index or 0], group.width)
                assert sums.gram is not None
                assert_gram(sums.gram, x, drift)
                np.testing.assert_allclose(sums.squares, (x * x).sum(axis=0), rtol=drift, atol=1e-9)
                assert (sums.tokens, sums.gram_tokens) == (len(x), len(x))
                compared += 1
    assert compared >= 4 * len(layers)


@pytest.mark.parametrize("name", MODELS)
def test_the_last_states_are_those_of_the_plain_forward(name: str, tmp_path: Path) -> None:
    with open_checkpoint(str(write_checkpoint(name, tmp_path / name))) as checkpoint:
        native = Native(checkpoint)
        _, layers, last = streamed(native, tmp_path / "work")
        decoder = native.decoder
        for sample, tokens in enumerate(tokens_for(native)):
            x, context = decoder.embed(tokens.tolist()), decoder.context(tokens.tolist())
            for number in range(len(layers)):
                x = decoder.layer(number)(x, context)
            np.testing.assert_allclose(last[sample], x, rtol=0, atol=DRIFT.get(name, 2e-5) * np.abs(x).max())


@pytest.mark.parametrize("name", MIXTURES)
def test_an_expert_that_few_tokens_were_sent_to_learns_from_others_but_counts_its_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are fewer tokens in all than the floor, so that every expert sees all of them."""
    assert np.prod(SHAPE) < stream_module.EXPERT_FLOOR
    with open_checkpoint(str(write_checkpoint(name, tmp_path / name))) as checkpoint:
        native = Native(checkpoint)
        kept, layers, _ = streamed(native, tmp_path / "work")
        inputs = traced(native, monkeypatch)
    routed = 0
    for layer in layers:
        experts = [entry for entry in layer.inputs if entry.expert is not None]
        for entry in experts:
            sums = kept.statistics[layer.number][entry.key]
            assert sums.gram is not None
            own = together(inputs[entry.linears[0].name, entry.linears[0].index or 0], entry.width)
            np.testing.assert_allclose(sums.squares, (own * own).sum(axis=0), rtol=1e-5, atol=1e-9)
            assert (sums.tokens, sums.gram_tokens) == (len(own), np.prod(SHAPE))
            routed += sums.tokens if not entry.key.endswith(".down") else 0
            if not entry.key.endswith(".down"):
                everyone = inputs[layer.find("feed").linears[0].name, 0]
                assert_gram(sums.gram, np.concatenate(everyone))
            else:
                # what of this expert alone is within what of everyone is
                assert np.linalg.eigvalsh(sums.gram - own.T @ own).min() > -1e-4 * np.trace(sums.gram)
                assert np.trace(sums.gram) > np.trace(own.T @ own)
    mixtures = sum(any(entry.expert is not None for entry in layer.inputs) for layer in layers)
    assert routed == mixtures * np.prod(SHAPE) * int(native.config["num_experts_per_tok"])


def test_others_tokens_are_as_many_as_are_lacking_and_from_all_over() -> None:
    rng = np.random.default_rng(0)
    chosen = np.stack([rng.permuted(np.tile(np.arange(8), (50, 1)), axis=1)[:, :2] for _ in range(6)])
    routes = Routes(chosen, np.ones(chosen.shape, np.float32))
    routed = (chosen == 3).any(axis=-1)
    picks = routes.others(3, 200)
    picked = {(sample, int(row)) for sample, rows in picks.items() for row in rows}
    assert len(picked) == sum(map(len, picks.values())) == 200 - routed.sum()
    assert not any(routed[at] for at in picked)
    assert all(len(picks[sample]) >= 0.5 * len(picked) / 6 for sample in range(6))
    assert routes.others(3, int(routed.sum())) == {}
    # no more than there are
    assert sum(map(len, routes.others(3, 10_000).values())) == (~routed).sum()


@pytest.mark.parametrize("name", ["mixtral", "gemma2"])
def test_without_gram_matrices_the_squares_are_the_same(name: str, tmp_path: Path) -> None:
    with open_checkpoint(str(write_checkpoint(name, tmp_path / name))) as checkpoint:
        native = Native(checkpoint)
        whole, layers, last = streamed(native, tmp_path / "a")
        squares, _, same = streamed(native, tmp_path / "b", StreamOptions(gram=False))
    assert np.array_equal(last, same)
    for layer in layers:
        for group in layer.inputs:
            a, b = (kept.statistics[layer.number][group.key] for kept in (whole, squares))
            np.testing.assert_allclose(a.squares, b.squares, rtol=1e-6)
            assert (a.tokens, b.gram, b.gram_tokens) == (b.tokens, None, 0)


@pytest.mark.parametrize("name", ["mixtral", "llama", "gemma4"])
def test_propagated_states_are_those_of_the_tensors_handed_back(name: str, tmp_path: Path) -> None:
    """A watcher that scales every value vector: the states go on as with those tensors, the statistics too."""

    class Halved(Kept):
        def dense(self, layer: LayerLinears, tensors: Tensors, statistics: Mapping[str, Statistics]) -> Tensors:
            super().dense(layer, {}, statistics)
            return {key: value * np.float32(0.5 if "v_proj" in key else 1) for key, value in tensors.items()}

        def expert(
            self, layer: LayerLinears, expert: int, tensors: Tensors, statistics: Mapping[str, Statistics]
        ) -> Tensors:
            super().dense(layer, {}, statistics)
            return {key: value * np.float32(0.25) for key, value in tensors.items()}

    with open_checkpoint(str(write_checkpoint(name, tmp_path / name))) as checkpoint:
        native = Native(checkpoint)
        tokens = tokens_for(native)
        with Stream(native, tokens, tmp_path, threads=2, options=StreamOptions(propagate=True)) as stream:
            stream.embed()
            for number in range(native.decoder.n_layers):
                stream.layer(number, Halved())
            states = stream.states.read(f"states-{native.decoder.n_layers % 2}", 3)

        def changed(values: np.ndarray, key: str) -> np.ndarray:
            factor = 0.5 if "v_proj" in key else 0.25 if ".experts." in key else 1.0
            return np.asarray(values * np.float32(factor), np.float32)

        weights = Weights(
            lambda key: changed(native.whole(key), key),
            lambda key, start, stop: changed(native.rows(key, start, stop), key),
            native.tensors.keys(),
        )
        x, context = native.decoder.embed(tokens[3].tolist()), native.decoder.context(tokens[3].tolist())
        for number in range(native.decoder.n_layers):
            x = native.decoder.layer(number, weights)(x, context)
    np.testing.assert_allclose(states, x, rtol=0, atol=2e-5 * np.abs(x).max())


def test_states_are_there_once_their_last_sample_is(tmp_path: Path) -> None:
    states = States(tmp_path, 3, 2, 4)
    assert not states.holds("a")
    states.write("a", 0, np.ones((2, 4), np.float32))
    states.write("a", 1, np.ones((2, 4), np.float32))
    assert not states.holds("a")
    states.write("a", 2, np.full((2, 4), 7, np.float32))
    assert states.holds("a")
    assert (states.read("a", 2) == 7).all()
    states.close()
    assert States(tmp_path, 3, 2, 4).holds("a")


@pytest.mark.full
def test_torch_gathers_what_numpy_gathers(tmp_path: Path) -> None:
    """In the converter's environment, which has torch; what else quantkit imports comes from this one."""
    for name in MODELS:
        write_checkpoint(name, tmp_path / name)
    done = subprocess.run(
        [str(peer_converter().python), "-m", "tests.stream.stream_with_torch", str(tmp_path), *MODELS],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{sysconfig.get_path('purelib')}"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for name in MODELS:
        with (
            open_checkpoint(str(tmp_path / name)) as checkpoint,
            np.load(tmp_path / f"{name}.npz") as theirs,
        ):
            kept, layers, last = streamed(Native(checkpoint), tmp_path / "work")
            np.testing.assert_allclose(theirs["last"], last, rtol=0, atol=1e-4 * np.abs(last).max())
            for layer in layers:
                for group in layer.inputs:
                    ours, key = kept.statistics[layer.number][group.key], f"{layer.number} {group.key}"
                    assert theirs[f"{key} tokens"].tolist() == [ours.tokens, ours.gram_tokens]
                    assert ours.gram is not None
                    scale = max(float(np.diagonal(ours.gram).max()), 1e-9)
                    assert np.abs(theirs[f"{key} gram"] - ours.gram).max() <= 1e-4 * scale
                    np.testing.assert_allclose(
                        theirs[f"{key} squares"], ours.squares, rtol=1e-3, atol=1e-4 * max(ours.squares.max(), 1e-9)
                    )
