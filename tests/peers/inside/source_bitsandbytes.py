"""Quantize a small checkpoint by bitsandbytes: `python source_bitsandbytes.py SOURCE TOKENS.json ROOT`.

For each case: ROOT/CASE is the folder that transformers saves, ROOT/CASE.npy the logits of the weights as bitsandbytes
dequantizes them.
"""

import json
import sys
from pathlib import Path

import torch
from bitsandbytes import functional
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from plain_logits import save_logits
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

_FOUR = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
CASES = {
    "nf4": {**_FOUR, "bnb_4bit_quant_type": "nf4"},
    "nf4-nested": {**_FOUR, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {**_FOUR, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


def main(source: str, tokens: str, root: str) -> None:
    ids = json.loads(Path(tokens).read_text())
    for name, given in CASES.items():
        model = AutoModelForCausalLM.from_pretrained(
            source, quantization_config=BitsAndBytesConfig(**given), device_map="cpu", dtype=torch.float32
        )
        model.save_pretrained(Path(root, name))
        AutoTokenizer.from_pretrained(source).save_pretrained(Path(root, name))
        weights = {n: _dequantized(m) for n, m in model.named_modules() if isinstance(m, Linear4bit | Linear8bitLt)}
        save_logits(source, weights, ids, Path(root, f"{name}.npy"))


def _dequantized(module: torch.nn.Module) -> torch.Tensor:
    weight = module.weight
    if isinstance(module, Linear4bit):
        return functional.dequantize_4bit(weight.data, weight.quant_state).float()
    return functional.int8_vectorwise_dequant(weight.data, weight.SCB).float()


if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:])
