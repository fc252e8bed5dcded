"""What quantkit writes means the same to the libraries that others load it with: their logits against ours.

A library may load a folder without an error and compute something else (transformers 5 does so with Mixtral), so only
logits count. Ours are quantkit's float32 forward over the weights as its own reader dequantizes them. The libraries run
their plain torch kernels in float16, whose rounding moves the logits by 0.0014 to 0.0019 of their standard deviation
here (root mean square); ROUNDING leaves room for three times as much. Quantization itself moves them by over 0.1, so a
wrong zero, scale, order or gate cannot hide below it.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from quantkit.calibration.native import Native
from quantkit.checkpoint import open_checkpoint
from quantkit.forward import reference_logits
from quantkit.int4.reading import open_quantized
from tests.command import quantkit
from tests.peers.environments import run_inside
from tests.peers.models import PROMPT, small_model

pytestmark = [pytest.mark.peers, pytest.mark.timeout(3600)]

ROUNDING = 0.006
QUANTIZATION = 0.05
_AWQ = ("awq",)
_GPTQ: Mapping[str, tuple[str, ...]] = {
    "gptq": ("gptq",),
    "gptq --asym": ("gptq", "--asym"),
    "gptq --no-static-groups": ("gptq", "--no-static-groups"),
}
FORMATS: Mapping[str, tuple[str, ...]] = {"awq": _AWQ, **_GPTQ}
EVERYWHERE = [(model, kind) for model in ("llama", "qwen2", "qwen2moe", "qwen3moe") for kind in FORMATS]
LOADED: Mapping[str, tuple[str, list[tuple[str, str]]]] = {
    # library -> environment, (model, format)
    "gptqmodel": ("gptqmodel", EVERYWHERE),
    "autoawq": ("autoawq", [("llama", "awq"), ("mixtral", "awq")]),
    "transformers": ("gptqmodel", [pair for pair in EVERYWHERE if pair[0] in ("llama", "qwen2")]),
}

Written = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A small model and a format -> the folder that quantkit makes of it, once."""
    root = tmp_path_factory.mktemp("loads-elsewhere")

    @cache
    def source(model: str) -> Path:
        return small_model(model, root / model)

    @cache
    def folder(model: str, kind: str) -> Path:
        out = root / f"{model} {kind}"
        few = ("--group-size", "32", "--samples", "8", "--seq-len", "64", "--raw")
        method, *options = FORMATS[kind]
        done = quantkit(method, source(model), *options, *few, "-o", out, timeout=900)
        assert done.code == 0, done.stderr
        (made,) = out.iterdir()
        return made

    return folder


@pytest.fixture(scope="module")
def theirs(
    request: pytest.FixtureRequest, written: Written, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Path]:
    """A library's logits of every folder it must load, all from one process: to import it takes the longest."""
    root = tmp_path_factory.mktemp("logits")
    tokens = root / "tokens.json"
    tokens.write_text(str(PROMPT))
    environment, pairs = LOADED[request.param]
    logits = {pair: root / f"{' '.join(pair)}.npy" for pair in pairs}
    words = [word for pair, out in logits.items() for word in (written(*pair), out)]
    run_inside(environment, "logits.py", request.param, tokens, *words)
    return logits


@pytest.mark.parametrize(
    ("theirs", "model", "kind"),
    [(library, *pair) for library, (_, pairs) in LOADED.items() for pair in pairs],
    indirect=["theirs"],
)
def test_their_logits_are_ours_but_for_the_rounding_of_their_kernel(
    theirs: dict[tuple[str, str], Path], model: str, kind: str, written: Written
) -> None:
    found = np.load(theirs[model, kind])
    ours = _dequantized_logits(written(model, kind))
    assert _difference(found, ours) < ROUNDING


@pytest.mark.parametrize(("model", "kind"), [*EVERYWHERE, ("mixtral", "awq")])
def test_quantization_moves_the_logits_by_far_more_than_that_bound(model: str, kind: str, written: Written) -> None:
    folder = written(model, kind)
    with open_checkpoint(str(folder.parent.parent / model)) as source:
        native = Native(source)
        plain = reference_logits(native.whole, native.config, PROMPT)
    assert _difference(_dequantized_logits(folder), plain) > QUANTIZATION


def _dequantized_logits(folder: Path) -> np.ndarray:
    with open_quantized(folder) as opened:
        return reference_logits(opened.whole, opened.config, PROMPT)


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference, in standard deviations of the logits."""
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())
