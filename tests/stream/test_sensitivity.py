"""What rounding a group costs: against the same model rounded in memory and run as a whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.families import open_model
from quantkit.families.base.native import Native
from quantkit.forward.forward import Decoder
from quantkit.forward.weights import Weights
from quantkit.stream.sensitivity import EMBEDDING, HEAD, CoarseRounding, coarsely_rounded, groups_of, sensitivity
from quantkit.workers import Workers
from tests.families.expected import write_checkpoint
from tests.helpers.tiny import tiny_llama

TOKENS = np.array([[5, 9, 2, 30, 7, 11, 4, 8], [3, 1, 60, 6, 22, 9, 10, 2]], np.int32)


def source(name: str, folder: Path) -> Path:
    return tiny_llama(folder, variant="llama3") if name == "llama3" else write_checkpoint(name, folder)


def logits(native: Native, changed: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """Logits of the model whose tensors in `changed` have other values, in float64."""

    def whole(name: str) -> Any:
        return changed[name] if name in changed else native.whole(name)

    def rows(name: str, start: int, stop: int) -> Any:
        values = whole(name)
        return values.reshape(-1, values.shape[-1])[start:stop]

    decoder = Decoder(Weights(whole, rows, native.tensors.keys()), native.config, native.architecture)
    return np.concatenate([decoder.run(tokens.tolist()) for tokens in TOKENS]).astype(np.float64)


def divergence(clean: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Mean of sum p log(p / q) over the positions."""
    p, q = (np.exp(x - x.max(axis=1, keepdims=True)) for x in (clean, other))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    return float((p * np.log(p / q)).sum(axis=1).mean())


@pytest.mark.parametrize("name", ["llama3", "gpt2", "qwen2moe", "gemma2"])
def test_the_divergence_of_each_group_is_that_of_the_model_with_these_matrices_rounded(
    name: str, tmp_path: Path
) -> None:
    with open_model(str(source(name, tmp_path / "model"))) as checkpoint, Workers(2) as workers:
        native = Native(checkpoint, nearest=True)
        groups, _ = groups_of(native, 2)
        tied = native.decoder.head == native.decoder.embedding
        measured = sensitivity(native, TOKENS, CoarseRounding(groups, 2), tmp_path, workers=workers)
        clean = logits(native, {})
        for group in groups.values():
            if tied and group.name in (EMBEDDING, HEAD):
                continue
            changed = {}
            for tensor, turned in group.tensors.items():
                values = np.asarray(native.whole(tensor), np.float32)
                values = np.swapaxes(values, -1, -2) if turned else values
                values = coarsely_rounded(values.reshape(-1, values.shape[-1]), 2).reshape(values.shape)
                changed[tensor] = np.swapaxes(values, -1, -2) if turned else values
            expected = divergence(clean, logits(native, changed))
            assert expected > 1e-5
            assert measured.divergence[group.name] == pytest.approx(expected, rel=0.02, abs=1e-6), group.name


def test_the_coarse_rounding_has_one_scale_for_32_inputs() -> None:
    rows = np.zeros((1, 64), np.float32)
    rows[0, :3], rows[0, 32:34] = (7, 3.4, -1.6), (0.7, 0.16)
    rounded = coarsely_rounded(rows, 7)
    assert rounded[0, :3].tolist() == [7, 3, -2]
    assert rounded[0, 32:34] == pytest.approx([0.7, 0.2])
    assert not rounded[0, 34:].any()


@pytest.mark.usefixtures("blas_of_many_threads")
def test_the_result_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    results = []
    with open_model(str(tiny_llama(tmp_path / "model", variant="llama3"))) as checkpoint:
        native = Native(checkpoint, nearest=True)
        for threads in (1, 3):
            with Workers(threads) as workers:
                groups, _ = groups_of(native, 2)
                folder = tmp_path / str(threads)
                folder.mkdir()
                results.append(sensitivity(native, TOKENS, CoarseRounding(groups, 3), folder, workers=workers))
    assert dict(results[0].divergence) == dict(results[1].divergence)
    assert (results[0].head_squares == results[1].head_squares).all()
