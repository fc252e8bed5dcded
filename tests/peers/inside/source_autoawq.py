"""Quantize a small checkpoint by AutoAWQ: `python source_autoawq.py SOURCE TOKENS.json ROOT`.

ROOT/gemm is the folder that it saves, ROOT/gemm.npy the logits of the weights as it dequantizes them.
"""

import json
import sys
from pathlib import Path

import torch
from awq import AutoAWQForCausalLM
from awq.utils.packing_utils import dequantize_gemm
from plain_logits import save_logits
from transformers import AutoTokenizer

_GROUP = 32


def main(source: str, tokens: str, root: str) -> None:
    ids = json.loads(Path(tokens).read_text())
    model = AutoAWQForCausalLM.from_pretrained(source, torch_dtype=torch.float32, device_map="cpu")
    tokenizer = AutoTokenizer.from_pretrained(source)
    config = {"zero_point": True, "q_group_size": _GROUP, "w_bit": 4, "version": "GEMM"}
    rows = [ids[start:] + ids[:start] for start in range(8)]
    model.quantize(tokenizer, quant_config=config, calib_data=rows, max_calib_samples=8, max_calib_seq_len=len(ids))
    model.save_quantized(str(Path(root, "gemm")))
    tokenizer.save_pretrained(Path(root, "gemm"))
    weights = {
        name: dequantize_gemm(module.qweight, module.qzeros, module.scales.float(), 4, _GROUP).T
        for name, module in model.model.named_modules()
        if hasattr(module, "qweight")
    }
    # AWQ folds scales into norms and into linears before others: these are no longer the source's
    folded = {
        name: module.weight
        for name, module in model.model.named_modules()
        if "norm" in name and hasattr(module, "weight")
    }
    save_logits(source, weights | folded, ids, Path(root, "gemm.npy"))


if __name__ == "__main__":
    main(*sys.argv[1:])
