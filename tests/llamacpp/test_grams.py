"""Error feedback for a source without a forward of ours: llama.cpp gives the Gram matrices of the inputs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from quantkit.conversion import callback as conversion
from quantkit.errors import PassingError
from quantkit.llamacpp.grams import Input, batches, distinct_inputs, input_grams
from quantkit.llamacpp.squares import input_squares
from quantkit.outputs import callback as outputs
from quantkit.progress import SILENT
from tests.families.expected import write_checkpoint
from tests.helpers.command import Answer, quantkit
from tests.helpers.conversions import to_gguf
from tests.helpers.tiny import tiny_llama

TOKENS = np.random.default_rng(5).integers(3, 250, (8, 48)).astype(np.int32)
FEEDBACK = ("--solver", "feedback", "--samples", "8", "--seq-len", "64", "--threads", "1", "--no-logits")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of a tiny model of two layers, f32; the checkpoint lies beside its folder as `model`."""
    folder = tmp_path_factory.mktemp("whole")
    return to_gguf(tiny_llama(folder / "model", variant="llama3", intermediate=256), "f32", folder)


def convert(source: Path, out: Path) -> Answer:
    return quantkit("gguf", source, "-t", "q4_0", "-t", "q2_k", *FEEDBACK, "-o", out)


def weights(out: Path, kind: str) -> dict[str, np.ndarray]:
    (file,) = out.rglob(f"*-{kind}.gguf")
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(file).tensors}


def files(out: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(out.rglob("*.gguf"))]


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted")
    answer = convert(source, out)
    assert answer.code == 0, answer.stderr
    assert "14 tensors rounded with error feedback" in answer.stdout
    assert not list(out.glob("*.partial"))
    return out


def test_the_diagonal_of_a_gram_matrix_is_the_sums_of_squares_of_experts_too(tmp_path: Path) -> None:
    model = to_gguf(write_checkpoint("mixtral", tmp_path / "model"), "f32", tmp_path)
    sums = input_squares(model, TOKENS, tmp_path / "sums.npz", threads=1, progress=SILENT)
    inputs = distinct_inputs(sums, list(sums))
    shared = {frozenset(entry.tensors) for entry in inputs}
    assert {f"blk.0.attn_{part}.weight" for part in "qkv"} in shared
    assert {f"blk.0.ffn_{part}_exps.weight" for part in ("gate", "up")} in shared
    grams = input_grams(model, TOKENS, inputs, tmp_path, threads=1, progress=SILENT)
    for entry, stored in zip(inputs, grams, strict=True):
        known = sums[entry.tensors[0]]
        statistics = stored.load(known.sums[entry.number], 0)
        assert statistics.gram is not None and statistics.held_out is not None
        assert np.allclose(np.diag(statistics.gram), statistics.squares, rtol=1e-4, atol=1e-6), entry
        assert np.allclose(statistics.gram, statistics.gram.T, rtol=1e-4, atol=1e-5)
        counts = np.broadcast_to(known.counts, len(known.sums))
        assert statistics.gram_tokens == counts[entry.number]
        # two windows of eight are held out; no expert saw more of them than of all
        assert statistics.held_out_tokens <= statistics.gram_tokens
        assert (np.diag(statistics.held_out) <= np.diag(statistics.gram) * 1.0001).all()
    assert not list(tmp_path.glob("*.npy"))


def test_a_gguf_and_its_checkpoint_are_rounded_alike(source: Path, converted: Path, tmp_path: Path) -> None:
    answer = convert(source.parents[1] / "model", tmp_path)
    assert answer.code == 0, answer.stderr
    for kind in ("Q4_0", "Q2_K"):
        ours, theirs = weights(converted, kind), weights(tmp_path, kind)
        assert ours.keys() == theirs.keys()
        for name, values in ours.items():
            if name == "token_embd.weight":  # the streamed forward alone knows what the first layer makes of it
                continue
            # a rounding step can fall the other way: the sums differ in the last digits
            assert (values == theirs[name]).mean() > 0.98, (kind, name)


def test_the_record_says_how_a_file_was_rounded(converted: Path) -> None:
    (record,) = converted.rglob("quantkit.json")
    for entry in json.loads(record.read_text())["outputs"].values():
        assert entry["feedback"]["damp"] == "chosen on held-out samples"
        assert set(entry["feedback"]["without_feedback"].values()) == {"the calibration does not cover its input"}


def test_the_memory_for_gram_matrices_does_not_change_the_bytes(
    source: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    monkeypatch.setattr(outputs, "memory_limit", lambda: 0)
    answer = convert(source, tmp_path)
    assert answer.code == 0, answer.stderr
    assert len(calls) > 2
    assert files(tmp_path) == files(converted)


def test_a_run_that_stopped_between_batches_resumes_to_the_same_bytes(
    source: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "memory_limit", lambda: 0)
    with monkeypatch.context() as patch:
        calls = counted(patch, last=3)
        assert convert(source, tmp_path).code == 1
        assert len(calls) == 3
    finished, calls = [entry for call in calls[:2] for entry in call], counted(monkeypatch)
    assert convert(source, tmp_path).code == 0
    assert calls
    assert not [entry for call in calls for entry in call if entry in finished]
    assert files(tmp_path) == files(converted)


def counted(monkeypatch: pytest.MonkeyPatch, last: int | None = None) -> list[list[Input]]:
    """The inputs of each batch that is measured from now on; batch number `last` fails."""
    calls: list[list[Input]] = []
    measure: Callable[..., Any] = conversion.input_grams

    def count(model: Path, tokens: np.ndarray, inputs: list[Input], *more: Any, **options: Any) -> Any:
        calls.append(list(inputs))
        if len(calls) == last:
            raise PassingError("llama.cpp was killed; run the same command again")
        return measure(model, tokens, inputs, *more, **options)

    monkeypatch.setattr(conversion, "input_grams", count)
    return calls


def test_batches_keep_to_the_memory_and_hold_one_input_at_least() -> None:
    inputs = [Input((f"blk.0.{number}.weight",), 0, width) for number, width in enumerate((10, 10, 30, 10, 20, 10))]
    parts = batches(inputs, 8 * 500)
    assert [[entry.width for entry in part] for part in parts] == [[10, 10], [30], [10, 20], [10]]
    assert [entry for part in parts for entry in part] == inputs
