"""mlx-lm on a CPU in float32: the logits of folders that are quantized, and folders that it quantizes itself.

    mlx_models.py load TOKENS.json FOLDER OUT.npy [FOLDER OUT.npy ...]
    mlx_models.py quantize TOKENS.json SOURCE OUT_FOLDER [SOURCE OUT_FOLDER ...]

`quantize` also writes OUT_FOLDER/logits.npy. Weights of 16 bits become float32 before mlx-lm changes them.
"""

import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model, quantize_model, save_config, save_model

GROUP, BITS = 32, 4
load_file = mx.load


def load_as_float32(*given, **named):
    halves = (mx.bfloat16, mx.float16)
    stored = load_file(*given, **named)
    return {name: array.astype(mx.float32) if array.dtype in halves else array for name, array in stored.items()}


def logits(model, tokens: list[int]) -> np.ndarray:
    return np.array(model(mx.array([tokens]))[0].astype(mx.float32))


def quantize(source: Path, out: Path, tokens: list[int]) -> None:
    model, config = quantize_model(*load_model(source, lazy=True), GROUP, BITS)
    out.mkdir()
    save_model(out, model)
    save_config(config, out / "config.json")
    for path in source.glob("*token*"):
        shutil.copy(path, out / path.name)
    np.save(out / "logits.npy", logits(load_model(out)[0], tokens))


def main(verb: str, tokens: str, *pairs: str) -> None:
    mx.set_default_device(mx.cpu)
    mx.load = load_as_float32
    ids = json.loads(Path(tokens).read_text())
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        if verb == "quantize":
            quantize(Path(first), Path(second), ids)
        else:
            np.save(second, logits(load_model(Path(first))[0], ids))


if __name__ == "__main__":
    main(*sys.argv[1:])
