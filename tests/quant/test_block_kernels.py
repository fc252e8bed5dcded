"""The C steps of error feedback: numpy's results or not at all."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from quantkit.gguf.blocks import FORMATS, BlockFormat
from quantkit.quant import block_kernels
from quantkit.quant.block_kernels import NUMPY, CSteps, same_results, steps
from quantkit.quant.block_search import Scales
from quantkit.quant.feedback import Curvature, curvature, solve
from quantkit.quant.grid import Array
from tests.quant.calibrated import gram, inputs, weight

KINDS = pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler: numpy computes the steps"
)


@pytest.fixture
def untested() -> Iterator[None]:
    """The choice of the implementation is made again, before and after the test."""
    block_kernels._tested_steps.cache_clear()
    yield
    block_kernels._tested_steps.cache_clear()


@needs_compiler
def test_the_c_steps_are_in_use_on_a_machine_with_a_compiler() -> None:
    assert isinstance(steps(), CSteps)


@needs_compiler
@KINDS
def test_every_step_has_numpys_results(kind: GGMLQuantizationType) -> None:
    assert all(same_results(steps(), FORMATS[kind], seed) for seed in range(1, 4))


@pytest.fixture(scope="module")
def prepared() -> Curvature:
    return curvature(gram(inputs(700, 512)), 700)


@needs_compiler
@KINDS
@pytest.mark.parametrize("n_rows", [1, 21])
def test_a_whole_matrix_has_numpys_results(kind: GGMLQuantizationType, n_rows: int, prepared: Curvature) -> None:
    format_, w = FORMATS[kind], np.ascontiguousarray(weight(n_rows, 512).T)
    w[:64, 0], w[:, n_rows // 2] = 0, w[:, n_rows // 2] * np.float32(1e-5)
    made, reference = (solve(format_, w, prepared, sweeps=2, by=by) for by in (steps(), NUMPY))
    assert np.array_equal(made.points, reference.points)
    for name in ("d", "dmin", "scales", "minima"):
        assert np.array_equal(getattr(made.scales, name), getattr(reference.scales, name))


@needs_compiler
@pytest.mark.usefixtures("untested")
def test_steps_whose_results_differ_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class OffByABit(CSteps):
        def search_scales(self, x: Array, weight: Array, format_: BlockFormat) -> Scales:
            scales = super().search_scales(x, weight, format_)
            if format_.kind == GGMLQuantizationType.Q4_K:
                scales.d[0, 5] = np.nextafter(scales.d[0, 5], np.float32(9))
            return scales

    monkeypatch.setattr(block_kernels, "CSteps", OffByABit)
    assert steps() is NUMPY


@pytest.mark.usefixtures("untested")
def test_without_a_compiler_or_when_turned_off_numpy_computes_the_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert steps() is NUMPY
    monkeypatch.undo()
    block_kernels._tested_steps.cache_clear()
    monkeypatch.setenv("QUANTKIT_C_KERNELS", "0")
    assert steps() is NUMPY


@needs_compiler
def test_arrays_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="the array has gaps"):
        steps().search_scales(
            np.zeros((512, 8), np.float32)[:, ::2], np.ones(512, np.float32), FORMATS[GGMLQuantizationType.Q4_0]
        )
