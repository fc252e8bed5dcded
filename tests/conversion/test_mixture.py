"""A mixture of experts with real weights keeps its perplexity; two experts that changed places would be noticed."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from demo.inputs import CACHE, InputsUnavailable
from quantkit.llamacpp.evaluation import logits
from quantkit.measurement.perplexity import perplexity, perplexity_ratio
from tests.helpers.command import quantkit
from tests.helpers.moe import NAME, smollm2_moe
from tests.helpers.peer import REPOSITORY, peer_converter
from tests.helpers.real import smollm2_or_skip, wikitext2_or_skip

pytestmark = pytest.mark.full
LENGTH = 512
# Mean loss of all 511 predictions of each window, and of the 255 of its second half, by transformers in fp32
# (tests/full/perplexity_with_transformers.py). Perplexities: 34.13 and 27.22; of the dense model 34.02 and 27.10.
TRANSFORMERS = (
    (3.04793, 2.56382),
    (3.52374, 3.57207),
    (3.49734, 3.22385),
    (3.54198, 3.16699),
    (3.40134, 3.01598),
    (3.21832, 3.16236),
    (3.49001, 3.33833),
    (3.60541, 3.58841),
    (3.87964, 3.70230),
    (3.95316, 3.52471),
    (3.56221, 3.31185),
    (3.64213, 3.47630),
)


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    try:
        return smollm2_moe()
    except InputsUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def f16(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixture as f16, converted and checked by the command."""
    return convert(checkpoint, tmp_path_factory.mktemp("mixture"))


def convert(source: Path, folder: Path) -> Path:
    answer = quantkit("gguf", source, "-t", "f16", "-o", folder, "--format", "json")
    assert answer.code == 0, answer.stderr
    assert json.loads(answer.stdout)["outputs"][0]["logit_correlation"] > 0.9999
    return folder / f"{source.name}-GGUF" / f"{source.name}-F16.gguf"


def loss(file: Path, window: list[int]) -> float:
    """Mean loss of predicting each token of the window but the first, by llama.cpp's logits."""
    values = logits(file, window)[:-1].astype(np.float64)
    peak = values.max(axis=1)
    total = peak + np.log(np.exp(values - peak[:, None]).sum(axis=1))
    return float((total - values[np.arange(len(values)), window[1:]]).mean())


def windows(checkpoint: Path, count: int) -> list[list[int]]:
    text = wikitext2_or_skip().removesuffix("\n")
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text).ids
    return [ids[at : at + LENGTH] for at in range(0, count * LENGTH, LENGTH)]


def test_the_first_window_costs_what_transformers_says(checkpoint: Path, f16: Path) -> None:
    assert loss(f16, windows(checkpoint, 1)[0]) == pytest.approx(TRANSFORMERS[0][0], abs=0.005)


@pytest.mark.parametrize("layer", ["0", "15", pytest.param("5", marks=pytest.mark.full)])
def test_two_experts_that_changed_places_fail_the_check(layer: str, checkpoint: Path, tmp_path: Path) -> None:
    """In the first layer most of the text suffers; in a middle one the logits still correlate 0.992 on average."""
    words = [layer, "gguf", str(checkpoint), "-t", "f16", "-o", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.conversion.swapped_experts", *words],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "F16 failed its check of logits" in done.stderr
    assert [path.name for path in tmp_path.rglob("*.gguf*")] == [f"{NAME}-F16.gguf.failed"]


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_mixture_keeps_its_perplexity(checkpoint: Path, f16: Path, tmp_path: Path) -> None:
    losses = [loss(f16, window) for window in windows(checkpoint, len(TRANSFORMERS))]
    assert losses == pytest.approx([whole for whole, _ in TRANSFORMERS], abs=0.005)
    assert math.exp(np.mean(losses)) == pytest.approx(34.13, rel=0.001)

    text, count = wikitext2_or_skip(), len(TRANSFORMERS)
    mixture = perplexity(f16, text, n_chunks=count)
    assert mixture.value == pytest.approx(math.exp(np.mean([half for _, half in TRANSFORMERS])), rel=0.001)
    dense = perplexity(convert(smollm2_or_skip(), tmp_path), text, n_chunks=count)
    ratio, error = perplexity_ratio(mixture, dense)
    # the experts' noise costs 0.4 percent
    assert error < 0.005 and abs(ratio - 1) < 0.015


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_transformers_still_says_so(checkpoint: Path) -> None:
    wikitext2_or_skip()
    peer = peer_converter()
    words = [checkpoint, CACHE / "wikitext-2-raw-test.txt", len(TRANSFORMERS)]
    done = subprocess.run(
        [str(peer.python), "-m", "tests.full.perplexity_with_transformers", *map(str, words)],
        env=peer.environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert np.array(json.loads(done.stdout)) == pytest.approx(np.array(TRANSFORMERS), abs=1e-3)
