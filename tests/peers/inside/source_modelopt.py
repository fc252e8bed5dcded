"""Quantize a small checkpoint by NVIDIA ModelOpt: `python source_modelopt.py SOURCE TOKENS.json ROOT`.

For each case: ROOT/CASE is the exported folder, ROOT/CASE.npy the logits of its weights as ModelOpt dequantizes them.
"""

import json
import sys
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from modelopt.torch.quantization.qtensor import NVFP4QTensor
from plain_logits import save_logits
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

CASES = {"fp8": mtq.FP8_DEFAULT_CFG, "nvfp4": mtq.NVFP4_DEFAULT_CFG}


def main(source: str, tokens: str, root: str) -> None:
    ids = json.loads(Path(tokens).read_text())
    for name, settings in CASES.items():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        mtq.quantize(model, settings, lambda quantized: quantized(torch.tensor([ids])))
        folder = Path(root, name)
        export_hf_checkpoint(model, export_dir=folder)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        save_logits(source, _dequantized(folder), ids, Path(root, f"{name}.npy"))


def _dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """The quantized weights of a folder in float32."""
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    weights = {}
    for key, scale in tensors.items():
        name = key.removesuffix(".weight_scale")
        if name == key:
            continue
        stored = tensors[f"{name}.weight"]
        if stored.dtype == torch.float8_e4m3fn:
            weights[name] = stored.float() * scale.float()
            continue
        shape = torch.Size((stored.shape[0], stored.shape[1] * 2))
        packed = NVFP4QTensor(shape, torch.float32, stored)
        overall = tensors[f"{name}.weight_scale_2"]
        weights[name] = packed.dequantize(torch.float32, scale=scale, double_scale=overall, block_sizes={-1: 16})
    return weights


if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:])
