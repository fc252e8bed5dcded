"""The tokens that every quantizer is given here, ours and the peers', and those that they are judged on.

`python -m tests.peers.samples` writes both as int32 arrays under .cache/peers: samples.npy (32, 512) from WikiText-2's
validation split to calibrate on, windows.npy (40, 512) from its test split to measure perplexity on. Each is the start
of the raw text, joined as wiki.valid.raw and wiki.test.raw have it (what llama-perplexity reads), in the checkpoint's
own tokens without special ones, cut into consecutive pieces.
"""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from demo.inputs import CACHE as INPUTS
from demo.smollm2 import smollm2_checkpoint
from demo.wikitext import wikitext2_test, wikitext2_validation

CACHE = INPUTS.parent / "peers"
LENGTH = 512
N_SAMPLES = 32
N_WINDOWS = 40


def calibration_samples() -> Path:
    """samples.npy, written on first use. Raises InputsUnavailable."""
    path = CACHE / "samples.npy"
    if not path.is_file():
        _save(path, wikitext2_validation().read_text(encoding="utf-8"), N_SAMPLES)
    return path


def held_out_windows() -> Path:
    """windows.npy, written on first use. Raises InputsUnavailable."""
    path = CACHE / "windows.npy"
    if not path.is_file():
        _save(path, wikitext2_test(), N_WINDOWS)
    return path


def _save(path: Path, text: str, n: int) -> None:
    tokenizer = Tokenizer.from_file(str(smollm2_checkpoint() / "tokenizer.json"))
    # The start of the text is enough: no English text takes more than 8 characters to a token.
    ids = tokenizer.encode(text[: 8 * n * LENGTH], add_special_tokens=False).ids[: n * LENGTH]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, np.array(ids, dtype=np.int32).reshape(n, LENGTH))
    partial.rename(path)


if __name__ == "__main__":
    print(calibration_samples())
    print(held_out_windows())
