"""What quantkit writes means the same to the libraries that others load it with: their logits against ours.

A library may load a folder without an error and compute something else (transformers 5 does so with Mixtral), so only
logits count. Ours are quantkit's float32 forward over the weights as its own reader dequantizes them. The libraries run
their plain torch kernels in float16, whose rounding moves a token's logits by 0.001 to 0.004 of the logits' standard
deviation here (root mean square); ROUNDING leaves room for twice as much. Quantization itself moves them by
over 0.2, so a wrong zero, scale, order or gate cannot hide below the bound. In a mixture of experts the same rounding
now and then sends a token to another expert where two are all but equal: a few tokens of the prompt may differ there.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.families import reference_logits
from quantkit.families.base.native import Native
from quantkit.packed.reader import open_quantized
from tests.helpers.command import quantkit
from tests.peers.environments import run_inside
from tests.peers.models import PROMPT, small_model

pytestmark = [pytest.mark.peers, pytest.mark.timeout(3600)]

ROUNDING = 0.008
QUANTIZATION = 0.1
MIXTURES = ("qwen2moe", "qwen3moe", "mixtral")
SENT_ELSEWHERE = 2
"""Tokens of the 24 that may differ in a mixture; one expert wrongly read would change a quarter of them."""
_AWQ = ("awq",)
_GPTQ: Mapping[str, tuple[str, ...]] = {
    "gptq": ("gptq",),
    "gptq --asym": ("gptq", "--asym"),
    "gptq --no-static-groups": ("gptq", "--no-static-groups"),
}
_BEST = {f"{method} --quality best": (method, "--quality", "best") for method in ("awq", "gptq")}
FORMATS: Mapping[str, tuple[str, ...]] = {"awq": _AWQ, **_GPTQ, **_BEST}
EVERYWHERE = [(model, kind) for model in ("llama", "qwen2", "qwen2moe", "qwen3moe") for kind in ("awq", *_GPTQ)]
LOADED: Mapping[str, tuple[str, list[tuple[str, str]]]] = {
    # library -> environment, (model, format)
    "gptqmodel": ("gptqmodel", EVERYWHERE),
    "autoawq": ("autoawq", [("llama", "awq"), ("mixtral", "awq")]),
    "transformers": (
        "gptqmodel",
        [pair for pair in EVERYWHERE if pair[0] in ("llama", "qwen2")] + [("llama", kind) for kind in _BEST],
    ),
}

Written = Callable[[str, str], Path]
Logits = dict[tuple[str, str], Path]


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
def gptqmodel(written: Written, tmp_path_factory: pytest.TempPathFactory) -> Logits:
    return _logits("gptqmodel", written, tmp_path_factory.mktemp("gptqmodel"))


@pytest.fixture(scope="module")
def autoawq(written: Written, tmp_path_factory: pytest.TempPathFactory) -> Logits:
    return _logits("autoawq", written, tmp_path_factory.mktemp("autoawq"))


@pytest.fixture(scope="module")
def transformers(written: Written, tmp_path_factory: pytest.TempPathFactory) -> Logits:
    return _logits("transformers", written, tmp_path_factory.mktemp("transformers"))


@pytest.mark.parametrize(
    ("library", "model", "kind"),
    [(library, *pair) for library, (_, pairs) in LOADED.items() for pair in pairs],
)
def test_their_logits_are_ours_but_for_the_rounding_of_their_kernel(
    library: str, model: str, kind: str, written: Written, request: pytest.FixtureRequest
) -> None:
    theirs: Logits = request.getfixturevalue(library)
    ours = _dequantized_logits(written(model, kind))
    differences = np.sort(_differences(np.load(theirs[model, kind]), ours))
    if model in MIXTURES:
        differences = differences[:-SENT_ELSEWHERE]
    assert differences[-1] < ROUNDING


@pytest.mark.parametrize(("model", "kind"), [*EVERYWHERE, ("mixtral", "awq")])
def test_quantization_moves_the_logits_by_far_more_than_that_bound(model: str, kind: str, written: Written) -> None:
    folder = written(model, kind)
    with open_checkpoint(str(folder.parent.parent / model)) as source:
        native = Native(source)
        plain = reference_logits(native.whole, native.config, PROMPT)
    assert np.median(_differences(_dequantized_logits(folder), plain)) > QUANTIZATION


def _logits(library: str, written: Written, folder: Path) -> Logits:
    """A library's logits of every folder it must load, all from one process: to import it takes the longest."""
    tokens = folder / "tokens.json"
    tokens.write_text(str(PROMPT))
    environment, pairs = LOADED[library]
    logits = {pair: folder / f"{' '.join(pair)}.npy" for pair in pairs}
    words = [word for pair, out in logits.items() for word in (written(*pair), out)]
    run_inside(environment, "logits.py", library, tokens, *words)
    return logits


def _dequantized_logits(folder: Path) -> np.ndarray:
    with open_quantized(folder) as opened:
        return reference_logits(opened.whole, opened.config, PROMPT)


def _differences(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Of each token: root mean square of the difference of its logits, in standard deviations of all logits."""
    return np.sqrt(np.mean((actual - expected) ** 2, axis=1)) / expected.std()
