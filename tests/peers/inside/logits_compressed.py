"""The logits that transformers computes from compressed-tensors and FP8 folders.

    logits_compressed.py TOKENS.json FOLDER[:dequantize] OUT.npy [FOLDER OUT.npy ...]

With ":dequantize" the weights are dequantized at loading, else compressed-tensors' own modules run on the packed ones.
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from compressed_tensors.compressors.nvfp4 import base as nvfp4
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

# its modules dequantize NVFP4 to bfloat16 whatever the model's type, and then refuse other inputs
nvfp4.unpack_fp4_from_uint8 = partial(nvfp4.unpack_fp4_from_uint8, dtype=torch.float32)


def main(tokens: str, *pairs: str) -> None:
    ids = torch.tensor([json.loads(Path(tokens).read_text())])
    for word, out in zip(pairs[::2], pairs[1::2], strict=True):
        folder, _, how = word.partition(":")
        method = json.loads(Path(folder, "config.json").read_text())["quantization_config"]["quant_method"]
        given = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if how and method != "fp8" else {}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu", **given).eval()
        with torch.inference_mode():
            np.save(out, model(input_ids=ids, use_cache=False).logits[0].float().numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
