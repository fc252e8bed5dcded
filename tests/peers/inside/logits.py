"""The logits that a library computes from folders it loaded itself.

    logits.py gptqmodel|autoawq|transformers TOKENS.json FOLDER OUT.npy [FOLDER OUT.npy ...]

TOKENS.json is a list of ids; OUT.npy gets float32 (n_tokens, n_vocab). A line per folder on stdout names the class that
computes its quantized linears, the dtype of its activations and how many linears there are.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch


def main(library: str, tokens: str, *pairs: str) -> None:
    ids = torch.tensor([json.loads(Path(tokens).read_text())])
    for folder, out in zip(pairs[::2], pairs[1::2], strict=True):
        model = LOADERS[library](folder)
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits[0]
        np.save(out, logits.float().numpy())
        kinds = Counter(type(module).__name__ for module in model.modules() if hasattr(module, "qweight"))
        print(folder, dict(kinds), logits.dtype)


def with_gptqmodel(folder: str) -> Any:
    from gptqmodel import BACKEND, GPTQModel

    return GPTQModel.load(folder, device="cpu", dtype=torch.float16, backend=BACKEND.TORCH).model


def with_autoawq(folder: str) -> Any:
    from awq import AutoAWQForCausalLM
    from awq.models import base
    from awq.modules.linear import gemm

    # Without a GPU it still takes triton's kernels and wants Intel's extension; it has its own code in torch too.
    gemm.TRITON_AVAILABLE = False
    base.get_best_device = lambda: "torch"
    return AutoAWQForCausalLM.from_quantized(folder, fuse_layers=False, device_map={"": "cpu"}, max_seq_len=512).model


def with_transformers(folder: str) -> Any:
    from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

    method = json.loads(Path(folder, "config.json").read_text())["quantization_config"]["quant_method"]
    # of what is given here only the kernel counts, the rest is read from the folder
    chosen = AwqConfig(backend="torch_awq") if method == "awq" else GPTQConfig(bits=4, backend="gptq_torch")
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, device_map="cpu", dtype=torch.float16, quantization_config=chosen
    )
    return loaded.eval()


LOADERS = {"gptqmodel": with_gptqmodel, "autoawq": with_autoawq, "transformers": with_transformers}

if __name__ == "__main__":
    main(*sys.argv[1:])
