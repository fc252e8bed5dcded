"""Perplexity of checkpoints, quantized or not, by transformers in float32 on the CPU; the same judge for everyone.

    perplexity.py WINDOWS.npy FOLDER[:ROUNDING:GROUP] ...

Quantized folders are dequantized by dequantize.py into a plain model. ROUNDING is asym or sym: the folder's linears of
decoder layers are rounded to the nearest of 4 bits first, in groups of GROUP inputs. Each window stands alone, all its
tokens but the first are scored, and the result is the exponential of the mean negative log likelihood. A JSON line per
folder: {"folder", "perplexity", "nll": [mean per window]}.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from dequantize import dequantized
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

_LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


def main(windows: str, *folders: str) -> None:
    tokens = torch.from_numpy(np.load(windows)).long()
    for wanted in folders:
        folder, _, rounding = wanted.partition(":")
        nll = _negative_log_likelihoods(_plain_model(Path(folder), rounding), tokens)
        row = {"folder": wanted, "perplexity": round(float(np.exp(np.mean(nll))), 4), "nll": nll}
        print(json.dumps(row), flush=True)


def _plain_model(folder: Path, rounding: str) -> torch.nn.Module:
    weights = dequantized(folder)
    if rounding:
        kind, _, group = rounding.partition(":")
        for name in weights:
            if name.removesuffix(".weight").endswith(_LAYER):
                weights[name] = _rounded(weights[name], int(group), symmetric=kind == "sym")
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(config))
        save_file(weights, Path(scratch) / "model.safetensors", {"format": "pt"})
        del weights
        return AutoModelForCausalLM.from_pretrained(scratch, dtype=torch.float32).eval()


def _rounded(weight: torch.Tensor, group: int, *, symmetric: bool) -> torch.Tensor:
    """The nearest of 16 levels between each group's extremes, or as many on either side of 0."""
    w = weight.unflatten(1, (-1, group))
    if symmetric:
        scale = (w.abs().amax(-1, keepdim=True) / 7.5).half().float().clamp(min=1e-8)
        zero = torch.full_like(scale, 8)
    else:
        low, high = w.amin(-1, keepdim=True).clamp(max=0), w.amax(-1, keepdim=True).clamp(min=0)
        scale = ((high - low) / 15).half().float().clamp(min=1e-8)
        zero = (-low / scale).round().clamp(0, 15)
    return (((w / scale).round() + zero).clamp(0, 15) - zero).mul(scale).flatten(1)


@torch.inference_mode()
def _negative_log_likelihoods(model: torch.nn.Module, tokens: torch.Tensor) -> list[float]:
    means = []
    for window in tokens:
        logits = model(window[None]).logits[0, :-1]
        means.append(float(torch.nn.functional.cross_entropy(logits, window[1:])))
    return means


if __name__ == "__main__":
    main(*sys.argv[1:])
