"""State-space and hybrid models: transformers loads what quantkit writes, and computes the same logits.

See test_loads_elsewhere.py for the bounds. The models are the tiny ones of tests/families.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from quantkit.families import reference_logits
from quantkit.packed.reader import open_quantized
from tests.families.expected import expected, write_checkpoint
from tests.families.models import TOKENS
from tests.helpers.command import quantkit
from tests.peers.environments import run_inside

pytestmark = [pytest.mark.peers, pytest.mark.timeout(3600)]

ROUNDING = 0.008
MODELS = ("granitehybrid-dense-groups", "falcon-h1", "nemotron-h", "jamba-dense-tied")
PAIRS = [(model, method) for model in MODELS for method in ("awq", "gptq")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], tuple[Path, Path]]]:
    """(model, method) -> the folder that quantkit writes, and transformers' logits of it; one process loads all."""
    root = tmp_path_factory.mktemp("hybrids")

    @cache
    def source(model: str) -> Path:
        return write_checkpoint(model, root / model)

    made = {}
    for model, method in PAIRS:
        out = root / f"{model} {method}"
        few = ("--group-size", "32", "--samples", "4", "--seq-len", "64", "--raw")
        done = quantkit(method, source(model), *few, "-o", out, timeout=900)
        assert done.code == 0, done.stderr
        (folder,) = out.iterdir()
        made[model, method] = folder, root / f"{model} {method}.npy"
    tokens = root / "tokens.json"
    tokens.write_text(json.dumps(list(TOKENS)))
    words = [word for pair in made.values() for word in pair]
    run_inside("gptqmodel", "logits.py", "transformers", tokens, *words)
    yield made


@pytest.mark.parametrize(("model", "method"), PAIRS)
def test_transformers_computes_the_same_logits(
    model: str, method: str, folders: dict[tuple[str, str], tuple[Path, Path]]
) -> None:
    folder, logits = folders[model, method]
    with open_quantized(folder) as opened:
        ours = reference_logits(opened.whole, opened.config, TOKENS)
    theirs = np.load(logits)
    differences = np.sqrt(np.mean((theirs - ours) ** 2, axis=1)) / ours.std()
    assert differences.max() < ROUNDING
    # the bound could not notice a folder that holds the source's own weights
    assert np.sqrt(np.mean((ours - expected(model).logits) ** 2)) > ROUNDING * ours.std()
