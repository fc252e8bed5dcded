"""The logits that mlx-lm computes from folders on a CPU, and what mx.quantize makes of their source.

    logits_mlx.py TOKENS.json SOURCE FOLDER OUT.npy [FOLDER OUT.npy ...]

Stdout: how many arrays of the folders were compared with mx.quantize of SOURCE, and how many differ.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model


def main(tokens: str, source: str, *pairs: str) -> None:
    mx.set_default_device(mx.cpu)
    ids, plain = json.loads(Path(tokens).read_text()), mx.load(f"{source}/model.safetensors")
    compared = different = 0
    for folder, out in zip(pairs[::2], pairs[1::2], strict=True):
        stored, config = mx.load(f"{folder}/model.safetensors"), json.loads(Path(folder, "config.json").read_text())
        settings = {key: config["quantization"][key] for key in ("group_size", "bits", "mode")}
        for name in [name.removesuffix(".scales") for name in stored if name.endswith(".scales")]:
            weight = plain[f"{name}.weight"].astype(getattr(mx, config["torch_dtype"]))
            made = mx.quantize(weight, **settings)
            for part, values in zip(("weight", "scales", "biases"), made, strict=False):
                compared += 1
                different += bool((values != stored[f"{name}.{part}"]).any().item())
        model, _ = load_model(Path(folder))
        model.apply(lambda array: array.astype(mx.float32) if array.dtype in (mx.bfloat16, mx.float16) else array)
        np.save(out, np.array(model(mx.array([ids]))[0]))
    print(compared, different)


if __name__ == "__main__":
    main(*sys.argv[1:])
