"""The figures kept in tests/families/golden still come out of transformers and llama.cpp's converter."""

from pathlib import Path

import numpy as np
import pytest

from tests.families.expected import compute, expected
from tests.families.models import all_cases
from tests.families.whole_files import compute as compute_files
from tests.families.whole_files import whole_files

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("group", sorted({group for group, _ in all_cases().values()}))
def test_transformers_and_the_converter_still_say_what_is_kept(group: str, tmp_path: Path) -> None:
    names = [name for name, (of, _) in all_cases().items() if of == group]
    for name, figures in compute(names, tmp_path).items():
        kept = expected(name)
        assert figures.config == kept.config
        assert figures.native == kept.native
        assert (figures.keys, figures.tensors) == (kept.keys, kept.tensors)
        # other processors add in another order
        assert np.abs(figures.logits.astype(np.float32) - kept.logits).max() < 0.002 * kept.logits.std()


@pytest.mark.parametrize("group", sorted({group for group, _ in all_cases().values()}))
def test_llama_cpps_two_steps_still_make_the_files_that_are_kept(group: str, tmp_path: Path) -> None:
    names = [name for name in whole_files() if all_cases()[name][0] == group]
    assert compute_files(names, tmp_path) == {name: whole_files()[name] for name in names}
