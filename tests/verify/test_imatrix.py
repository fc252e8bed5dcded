"""The check of a written importance matrix: a sound file passes, a changed one is found."""

from collections.abc import Callable

import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.files import partial_path
from quantkit.imatrix.file import Imatrix, write_imatrix
from quantkit.outputs.plan import ConversionPlan, ConversionRequest
from quantkit.outputs.planner import plan_conversion
from quantkit.texts.samples import SampledText, Samples
from quantkit.verify.check import Check
from quantkit.verify.imatrix import verify_imatrix
from tests.helpers.tiny import tiny_llama

Sums = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    folder = tmp_path_factory.mktemp("imatrix")
    tokens = np.zeros((2, 8), np.int32)
    samples = Samples(tokens, (SampledText("text.txt", "0" * 64, tokens.size, len(tokens)),), chat=False)
    with open_checkpoint(str(tiny_llama(folder / "model", variant="mixtral"))) as source:
        return plan_conversion(source, ConversionRequest(folder, imatrix=True), samples)


def check(
    plan: ConversionPlan, change: Callable[[Sums, Sums], object], text: str = "text.txt"
) -> tuple[Check, Imatrix]:
    """The check of a file whose sums and counts were changed before it was written."""
    assert plan.calibration is not None and plan.imatrix is not None
    expected = plan.calibration.imatrix()
    counts = {name: np.ones(len(keys), np.float32) for name, keys in plan.calibration.imatrix_sources.items()}
    sums = {name: values.reshape(len(counts[name]), -1).copy() for name, values in expected.values.items()}
    change(sums, counts)
    write_imatrix(partial_path(plan.imatrix.path), sums, counts, datasets=[text], chunk_size=8, chunks=2)
    (checked,) = verify_imatrix(plan.imatrix, expected).checks
    return checked, expected


def test_a_sound_file_passes_and_has_the_planned_size(plan: ConversionPlan) -> None:
    checked, expected = check(plan, lambda sums, counts: None)
    assert (checked.status, checked.detail) == ("passed", f"{len(expected.values)} tensors read back as calibrated")


def drop(sums: Sums, counts: Sums) -> None:
    del sums["blk.0.attn_q.weight"], counts["blk.0.attn_q.weight"]


@pytest.mark.parametrize(
    ("change", "text", "detail"),
    [
        (lambda sums, counts: sums["blk.1.ffn_up_exps.weight"].__setitem__((3, 5), 2.0), "text.txt", "differs from"),
        (lambda sums, counts: counts["blk.0.attn_q.weight"].__setitem__(0, 2.0), "text.txt", "differs from"),
        (lambda sums, counts: None, "tale.txt", "states another text"),
        (drop, "text.txt", "bytes instead of"),
    ],
)
def test_a_changed_file_is_found(
    change: Callable[[Sums, Sums], object], text: str, detail: str, plan: ConversionPlan
) -> None:
    checked, _ = check(plan, change, text)
    assert checked.status == "failed" and detail in checked.detail
