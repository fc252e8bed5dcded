"""A calibration from end to end, in every architecture: the folders it writes, reloaded, say what the source says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.calibrated import Calibrated, calibrate
from quantkit.calibration.native import Native
from quantkit.calibration.text import Samples
from quantkit.checkpoint import open_checkpoint
from quantkit.convert.calibration_plan import CalibratedPlan, plan_calibrated
from quantkit.convert.folders import FolderRequest
from quantkit.errors import UnsupportedError
from quantkit.forward import reference_logits
from quantkit.int4.grid import Grid
from quantkit.int4.reading import open_quantized
from quantkit.verify.running import correlations
from tests.families.expected import write_checkpoint
from tests.families.models import TOKENS, all_cases
from tests.forward.test_linears import everyone_everywhere

EIGHT_BIT = (FolderRequest("awq", Grid(8, 16)), FolderRequest("gptq", Grid(8, -1, symmetric=True)))
# Widths that no usual group divides.
WHOLE_ROWS = (FolderRequest("awq", Grid(8, -1)), FolderRequest("gptq", Grid(8, -1, symmetric=True)))
# No architecture of transformers is the same, or none of its loaders reads experts stacked in one tensor.
NO_NATIVE = {"baichuan-13b", "baichuan2-13b"}
STACKED_ONLY = {name for name in all_cases() if name.startswith(("gpt-oss", "granitemoe"))}
WRITTEN = sorted(all_cases().keys() - NO_NATIVE - STACKED_ONLY)
# One or two a group in the default suite: what differs in folds, linears, experts or names.
FIRST = {
    "baichuan2",  # remote code, packed queries, keys and values; normed head
    "bloom",  # biases, norms with biases, no folds through attention's rows
    "gpt2",  # turned matrices
    "falcon-40b",  # parallel, two norms
    "olmo2",  # norms after, nothing to fold into
    "deepseek-v2-lite",  # latent attention, shared experts, a first dense layer
    "mixtral",
    "gemma2",  # an offset in norms, four norms a layer
    "qwen2moe-fused-no-biases",  # experts in one tensor that leave one by one, a gated shared expert
    "phi-4k",  # packed linears
}
# Correlation of a token's logits in 8 bit, on average and at worst: folds or rows out of place leave about 0.
MEAN, LEAST = 0.985, 0.9


def samples(vocab: int, shape: tuple[int, int] = (8, 24), seed: int = 0) -> Samples:
    tokens = np.random.default_rng(seed).integers(3, vocab, shape).astype(np.int32)
    return Samples(tokens, "random", "0" * 64, tokens.size, chat=False)


def planned(native: Native, out: Path, requests: Sequence[FolderRequest] = EIGHT_BIT, **options: Any) -> CalibratedPlan:
    shape = options.pop("shape", (8, 24))
    return plan_calibrated(
        native,
        samples(int(native.config["vocab_size"]), shape),
        requests,
        name="M",
        output=out,
        **{"threads": 2, **options},
    )


def written(name: str, folder: Path) -> Path:
    """The case's checkpoint; in a mixture every token goes to every expert.

    Else an error of a hundredth sends a token to another expert here and there, which is much in models as small as
    these, whose experts know nothing of each other; routes are tested with the stream.
    """
    write_checkpoint(name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(everyone_everywhere(config)))
    return folder


def calibrated(
    name: str, folder: Path, requests: Sequence[FolderRequest] = EIGHT_BIT, **options: Any
) -> tuple[Calibrated, np.ndarray]:
    """The case's model calibrated into `folder`; with it, the source's logits."""
    with open_checkpoint(str(written(name, folder / name))) as checkpoint:
        native = Native(checkpoint)
        result = calibrate(planned(native, folder, requests, **options))
        return result, reference_logits(
            native.whole, native.config, TOKENS, rows=native.rows, names=native.tensors.keys()
        )


def logits(folder: Path) -> np.ndarray:
    with open_quantized(folder) as opened:
        weights = opened.weights
        return reference_logits(weights.read, opened.config, TOKENS, rows=weights.rows, names=weights.names)


@pytest.mark.parametrize(
    "name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.full) for name in WRITTEN]
)
def test_folders_of_every_architecture_give_the_sources_logits(name: str, tmp_path: Path) -> None:
    result, source = calibrated(name, tmp_path, WHOLE_ROWS if name.startswith("deepseek") else EIGHT_BIT)
    found = {folder.plan.request.method: logits(folder.plan.folder) for folder in result.folders}
    assert found.keys() == {"awq", "gptq"}
    correlation = {method: correlations(each, source) for method, each in found.items()}
    assert min(each.mean() for each in correlation.values()) > MEAN, correlation
    assert min(each.min() for each in correlation.values()) > LEAST, correlation
    assert [folder.failed for folder in result.folders] == [(), ()]
    # every linear's error is noted, and none is at a loss in 8 bit
    for folder in result.folders:
        assert folder.errors.keys() == folder.plan.quantized.keys()
        assert max(folder.errors.values()) < 0.01
    assert {path.name for path in tmp_path.iterdir()} == {name, "M-AWQ", "M-GPTQ"}


@pytest.mark.parametrize("name", sorted(NO_NATIVE))
def test_what_no_architecture_of_transformers_is_the_same_as_is_refused(name: str, tmp_path: Path) -> None:
    with (
        open_checkpoint(str(write_checkpoint(name, tmp_path / name))) as checkpoint,
        pytest.raises(UnsupportedError, match="it becomes GGUF only"),
    ):
        Native(checkpoint)


@pytest.mark.parametrize("name", ["gpt-oss-mxfp4", "granitemoeshared"])
def test_experts_that_stand_in_one_tensor_only_are_refused(name: str, tmp_path: Path) -> None:
    with (
        open_checkpoint(str(write_checkpoint(name, tmp_path / name))) as checkpoint,
        pytest.raises(UnsupportedError, match=r"mlp\.experts|block_sparse_moe.*convert this model to GGUF"),
    ):
        planned(Native(checkpoint), tmp_path / "out")
    assert not (tmp_path / "out").exists()
