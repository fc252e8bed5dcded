"""Quantize a small checkpoint by GPTQModel: `python source_gptqmodel.py SOURCE TOKENS.json ROOT`.

For each case: ROOT/CASE is the folder that it saves, ROOT/CASE.npy the logits of the weights as its own layers
dequantize them.
"""

import json
import sys
from pathlib import Path

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from plain_logits import save_logits
from transformers import AutoTokenizer

CASES = {
    "4bit": {"bits": 4},
    "4bit-act-order": {"bits": 4, "desc_act": True},
    "4bit-asymmetric": {"bits": 4, "sym": False},
    "8bit": {"bits": 8},
}


def main(source: str, tokens: str, root: str) -> None:
    ids = json.loads(Path(tokens).read_text())
    rows = [{"input_ids": ids[start:] + ids[:start], "attention_mask": [1] * len(ids)} for start in range(8)]
    for name, given in CASES.items():
        folder = str(Path(root, name))
        model = GPTQModel.load(source, QuantizeConfig(group_size=32, **given), dtype=torch.float32)
        model.quantize(rows, batch_size=1)
        model.save(folder)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        loaded = GPTQModel.load(folder, device="cpu", dtype=torch.float16, backend=BACKEND.TORCH).model
        weights = {}
        for linear, module in loaded.named_modules():
            if hasattr(module, "dequantize_weight"):
                module.scales = module.scales.float()  # it dequantizes in the type of the scales
                weights[linear] = module.dequantize_weight().T.float()
        save_logits(source, weights, ids, Path(root, f"{name}.npy"))


if __name__ == "__main__":
    main(*sys.argv[1:])
