"""Real GGUF files of tiny models in real llama.cpp, side by side, in turns, killed and resumed."""

import os
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from quantkit.errors import MeasureError
from quantkit.llamacpp.token_ids import text_tokens
from quantkit.measurement.comparison import ComparedModel, Comparison
from quantkit.measurement.gguf_engine import GgufEngine
from quantkit.progress import SILENT, Progress
from quantkit.texts.windows import Windows, cut_windows
from tests.helpers.progress import Recorded
from tests.helpers.tiny import tiny_llama
from tests.helpers.tiny_tokenizers import CORPUS
from tests.measurement.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three tiny models of one vocabulary and different weights."""
    folder = tmp_path_factory.mktemp("models")
    return [
        write_tiny_gguf(
            tiny_llama(folder / str(seed), dtype="f32", variant="smollm2", seed=seed), folder / f"{seed}.gguf"
        )
        for seed in range(3)
    ]


@pytest.fixture(scope="module")
def texts(models: list[Path]) -> list[Windows]:
    whole = CORPUS.removesuffix("\n")
    windows = []
    for name, part, count in (("one", whole, 3), ("two", whole[::-1], 2)):
        ids, bos = text_tokens(models[0], part)
        windows.append(cut_windows(ids, bos, n_ctx=64, n_chunks=count, name=name))
    return windows


def compared(models: list[Path], texts: list[Windows], work: Path, progress: Progress = SILENT) -> Comparison:
    entries = [ComparedModel(GgufEngine(model), model.stem) for model in models]
    comparison = Comparison(entries, texts, work, threads=2)
    comparison.run(progress)
    return comparison


def test_texts_and_models_do_not_mix(models: list[Path], texts: list[Windows], tmp_path: Path) -> None:
    both = compared(models, texts, tmp_path / "both")
    for place, text in enumerate(texts):
        alone = compared([models[0], models[2]], [text], tmp_path / text.name)
        np.testing.assert_array_equal(both.records(0, place), alone.records(0, 0))
        np.testing.assert_array_equal(both.records(2, place), alone.records(1, 0))
    assert not np.array_equal(both.records(1, 0), both.records(2, 0))
    assert (both.records(1, 0)["kl"] > 0).all() and (both.records(0, 0)["kl"] == 0).all()


def test_models_that_do_not_fit_in_memory_together_give_the_same_in_turns(
    models: list[Path], texts: list[Windows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = compared(models, texts, tmp_path / "together")
    monkeypatch.setattr("quantkit.measurement.comparison.available_memory", lambda: 0)
    rows = 4 * texts[0].targets.shape[1] * GgufEngine(models[0]).n_vocab
    monkeypatch.setattr("quantkit.measurement.comparison._SPOOL_BYTES", 2 * rows)
    progress = Recorded()
    turns = compared(models, texts, tmp_path / "turns", progress)
    assert progress.stages == ["chunks"] and progress.amounts == [0, 2, 2, 1]
    for model in range(3):
        for text in range(2):
            np.testing.assert_array_equal(together.records(model, text), turns.records(model, text))
    assert not (tmp_path / "turns" / "logits").exists()


def test_what_was_measured_before_a_kill_is_not_measured_again(
    models: list[Path], texts: list[Windows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compared(models, texts, tmp_path / "whole")
    evaluated: list[int] = []
    really = GgufEngine.logits
    monkeypatch.setattr(GgufEngine, "logits", lambda self, window: evaluated.append(window) or really(self, window))

    def kill(_done: int, _total: int) -> None:
        if len(evaluated) == 6:  # two windows of three models
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compared(models, texts, tmp_path / "killed", Recorded(kill))
    evaluated.clear()
    resumed = compared(models, texts, tmp_path / "killed")
    assert evaluated == [2, 2, 2, 3, 3, 3, 4, 4, 4]
    for model in range(3):
        for text in range(2):
            np.testing.assert_array_equal(whole.records(model, text), resumed.records(model, text))


def test_a_kill_while_the_records_are_begun_leaves_none_that_count_as_measured(
    models: list[Path], texts: list[Windows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def killed(file: int, data: bytes, offset: int) -> int:
        write(file, data[: len(data) // 2], offset)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", killed)
        with pytest.raises(KeyboardInterrupt):
            compared(models[:1], texts, tmp_path)
    losses = compared(models[:1], texts, tmp_path).records(0, 0)["loss"]
    assert np.isfinite(losses).all() and (losses > 0).all()


def test_logits_that_are_not_finite_are_named_by_model_text_and_chunk(texts: list[Windows], tmp_path: Path) -> None:
    """The embedding of a token that only the last window has is NaN, and the head is another matrix."""
    sound = write_tiny_gguf(tiny_llama(tmp_path / "untied", dtype="f32", variant="mistral"), tmp_path / "sound.gguf")
    some = []
    for name, part, count in (("one", CORPUS, 3), ("two", CORPUS[::-1], 2)):
        ids, bos = text_tokens(sound, part)
        some.append(cut_windows(ids, bos, n_ctx=64, n_chunks=count, name=name))
    last = np.setdiff1d(some[1].tokens[1], np.concatenate([some[0].tokens.ravel(), some[1].tokens[0]]))
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(sound.read_bytes())
    reader = GGUFReader(damaged, "r+")
    embedding = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    embedding.data[last[0]] = np.nan
    reader.data.flush()
    with pytest.raises(MeasureError, match=r"damaged gives logits that are not finite.* in chunk 2 of two"):
        compared([sound, damaged], some, tmp_path / "work")
