"""Error feedback in GGUF types on tensors of torch, as `--device cuda` runs it, against the code of the CPU."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf.quants import dequantize
from numpy.typing import NDArray

from quantkit.gguf.blocks import FORMATS
from quantkit.quant.feedback import curvature, quantize_with_feedback
from tests.conversion.test_feedback import LayerOutputs, checkpoint_values, grams, output_errors
from tests.forward.test_torch import run_peer, run_with_torch
from tests.helpers.command import quantkit
from tests.helpers.peer import REPOSITORY
from tests.helpers.tiny import tiny_llama
from tests.quant.calibrated import gram, inputs, weight

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]
TOKENS, N_OUT, N_IN = 1200, 300, 768
TYPES = ("-t", "q4_0", "-t", "q8_0", "-t", "q4_k_m", "-t", "q6_k", "-t", "iq3_s")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matrix with rows of zeros, of tiny values and half of zeros, and the Gram matrix of its input."""
    w = weight(N_OUT, N_IN)
    w[3], w[4, :40] = 0, 0
    w[5] *= np.float32(1e-30)
    path = tmp_path_factory.mktemp("given") / "matrix.npz"
    np.savez(path, weight=w, gram=gram(inputs(TOKENS, N_IN)), count=TOKENS)
    return path


def rounded_by_torch(given: Path, out: Path) -> dict[str, NDArray[np.uint8]]:
    """The bytes of the matrix in each type."""
    done = run_peer(REPOSITORY / "tests" / "quant" / "feedback_with_torch.py", str(given), str(out))
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(out) as made:
        return dict(made)


def test_every_type_has_the_output_error_of_the_cpus_code(given: Path, tmp_path: Path) -> None:
    """gguf-py decodes the bytes of both."""
    with np.load(given) as arrays:
        w, hessian = arrays["weight"], arrays["gram"]
    prepared, exact = curvature(hessian, TOKENS), hessian.astype(np.float64)
    made = rounded_by_torch(given, tmp_path / "made.npz")
    ratios = {}
    for kind in FORMATS:
        errors = []
        for packed in (made[kind.name], quantize_with_feedback(kind, w, prepared)):
            difference = dequantize(packed, kind).astype(np.float64) - w
            errors.append(float(np.einsum("oi,ij,oj->", difference, exact, difference, optimize=True)))
        ratios[kind.name] = errors[0] / errors[1]
    assert {name: ratio for name, ratio in ratios.items() if abs(ratio - 1) > 0.01} == {}


def test_runs_that_torch_compiles_have_the_results_of_those_that_it_does_not() -> None:
    """GPTQ's and those of GGUF types, with two numbers of rows; types of one structure share the compiled code."""
    done = run_peer(REPOSITORY / "tests" / "quant" / "compiled_with_torch.py")
    assert done.returncode == 0, done.stderr[-4000:]
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["failure"] is None
    # a value within float32 rounding of a half falls either way
    assert {name: rows for name, rows in document["rows"].items() if max(rows) > 0.02} == {}
    assert document["compiled"] == 11


@pytest.mark.parametrize("variant", ["llama2", "mixtral"])
def test_files_calibrated_on_tensors_have_the_errors_of_those_of_the_cpu(variant: str, tmp_path: Path) -> None:
    """llama.cpp reads the files and computes their tokens; neurons are reordered before a Q6_K `ffn_down`."""
    source = tiny_llama(tmp_path / "model", variant=variant, hidden=256, intermediate=512)
    words = ("gguf", str(source), *TYPES, "--solver", "feedback", "--samples", "12", "--seq-len", "64", "--no-logits")
    words += ("--threads", "1", "--reorder-neurons") if variant == "mixtral" else ("--threads", "1")
    assert quantkit("gguf", source, "-t", "f32", "-o", tmp_path / "exact", "--no-logits").code == 0
    assert quantkit(*words, "-o", tmp_path / "ours").code == 0
    done = run_with_torch(*words, "-o", str(tmp_path / "theirs"))
    assert done.returncode == 0, done.stderr[-4000:]
    (exact,) = (tmp_path / "exact").rglob("*.gguf")
    hessians, files = grams(source, tmp_path), sorted((tmp_path / "ours").rglob("*.gguf"))
    assert len(files) == 5
    for path in files:
        (other,) = (tmp_path / "theirs").rglob(path.name)
        if "--reorder-neurons" in words and path.stem.endswith(("Q6_K", "Q4_K_M")):
            continue  # the columns of its matrices are not those of the source
        ours, theirs = output_errors(path, exact, hessians), output_errors(other, exact, hessians)
        ratios = {name: theirs[name] / error for name, error in ours.items() if error > 0}
        assert len(ratios) >= 14
        assert {name: ratio for name, ratio in ratios.items() if abs(ratio - 1) > 0.01} == {}, path.name


def test_the_best_quality_on_tensors_leaves_the_states_as_near_to_the_sources(tmp_path: Path) -> None:
    """A matrix is rounded for the inputs that rounded layers give, so its own error against the source may differ.

    The targets of 768 tokens differ in the last bits, so some levels do, by chance.
    """
    source = tiny_llama(tmp_path / "model", variant="llama3", hidden=128, intermediate=256)
    words = ("gguf", str(source), "-t", "q4_0", "-t", "q5_1", "-t", "q3_k_m", "--quality", "best", "--no-logits")
    words += ("--samples", "12", "--seq-len", "64", "--threads", "2")
    assert quantkit("gguf", source, "-t", "f32", "-o", tmp_path / "exact", "--no-logits").code == 0
    assert quantkit(*words, "-o", tmp_path / "ours").code == 0
    done = run_with_torch(*words, "-o", str(tmp_path / "theirs"))
    assert done.returncode == 0, done.stderr[-4000:]
    (exact,) = (tmp_path / "exact").rglob("*.gguf")
    states, ratios = LayerOutputs(source, tmp_path), {}
    wanted = states.of({})
    for path in sorted((tmp_path / "ours").rglob("*.gguf")):
        (other,) = (tmp_path / "theirs").rglob(path.name)
        ours, theirs = (
            float(np.linalg.norm(states.of(checkpoint_values(file, exact, source)) - wanted)) for file in (path, other)
        )
        ratios[path.name] = theirs / ours
    assert len(ratios) == 3 and {name: ratio for name, ratio in ratios.items() if abs(ratio - 1) > 0.02} == {}
