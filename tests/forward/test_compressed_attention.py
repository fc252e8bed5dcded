"""DeepSeek-V4 over several hundred tokens: windows of 128 tokens are full, and index heads leave most windows out."""

from pathlib import Path

import numpy as np

from quantkit.checkpoint import open_checkpoint
from quantkit.families.base.native import Native
from quantkit.llamacpp.evaluation import logits
from tests.families.expected import write_checkpoint
from tests.families.models import VOCAB
from tests.helpers.conversions import to_gguf

# not a multiple of a window, and more than twice the longest
TOKENS = np.random.RandomState(4).randint(3, VOCAB - 8, 301).tolist()


def test_logits_of_a_long_text_are_llama_cpps(tmp_path: Path) -> None:
    folder = write_checkpoint("deepseek-v4-unpacked", tmp_path / "long")
    theirs = logits(to_gguf(folder, "f32", tmp_path), TOKENS)
    with open_checkpoint(str(folder)) as checkpoint:
        ours = Native(checkpoint).decoder.run(TOKENS)
    drift = np.abs(ours - theirs).max(axis=1) / theirs.std()
    assert drift.max() < 0.02, f"token {drift.argmax()}: {drift.max():.2%}"
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).all()


def test_a_token_depends_on_none_after_it(tmp_path: Path) -> None:
    folder = write_checkpoint("deepseek-v4-unpacked", tmp_path / "prefix")
    with open_checkpoint(str(folder)) as checkpoint:
        decoder = Native(checkpoint).decoder
        whole = decoder.run(TOKENS[:140])
        for n in (1, 4, 7, 128, 131):
            assert np.abs(decoder.run(TOKENS[:n]) - whole[:n]).max() < 1e-3 * whole.std(), n
