"""The importance matrix of SmolLM2 three ways: the streamed forward, llama.cpp's callback, llama-imatrix itself."""

from pathlib import Path

import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.families.base.native import Native
from quantkit.imatrix.names import collect_imatrix, imatrix_sources
from quantkit.llamacpp.squares import input_squares
from quantkit.progress import SILENT
from quantkit.tokenizer import hf_token_ids
from tests.helpers.conversions import to_gguf
from tests.helpers.imatrix_program import entries_of_text
from tests.helpers.real import smollm2_or_skip, wikitext2_or_skip
from tests.imatrix.test_names import squares_of

WINDOWS, LENGTH = 8, 128


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_three_ways_give_the_same_sums(tmp_path: Path) -> None:
    """Every value of all 210 weights, relative to itself. Measured: callback 6e-6, streamed forward 4e-5."""
    folder = smollm2_or_skip()
    text = tmp_path / "text.txt"
    text.write_text(wikitext2_or_skip()[:12000])
    (ids,) = hf_token_ids(folder, [text.read_text()])
    tokens = np.array(ids[: WINDOWS * LENGTH], np.int32).reshape(WINDOWS, LENGTH)
    with open_checkpoint(str(folder)) as checkpoint:
        native = Native(checkpoint)
        sums, counts = collect_imatrix(squares_of(native, tokens, tmp_path / "work"), imatrix_sources(native))
    model = to_gguf(folder, "f32", tmp_path)
    by_callback = input_squares(model, tokens, tmp_path / "sums.npz", threads=1, progress=SILENT)
    theirs = entries_of_text(model, text, WINDOWS, LENGTH)
    assert sums.keys() == by_callback.keys() == theirs.keys()
    assert len(theirs) == 30 * 7
    for tensor, entry in theirs.items():
        for ours in (sums[tensor], by_callback[tensor].sums):
            np.testing.assert_allclose(ours.ravel(), entry.sums, rtol=1e-4, atol=0, err_msg=tensor)
        for tokens_seen in (counts[tensor], by_callback[tensor].counts):
            assert tokens_seen.tolist() == entry.counts.tolist() == [WINDOWS * LENGTH]
