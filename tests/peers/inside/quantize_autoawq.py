"""Quantize a checkpoint with AutoAWQ; runs in its environment.

    quantize_autoawq.py DTYPE SOURCE SAMPLES.npy OUT GROUP_SIZE

DTYPE is that of weights and activations while it works: auto is the checkpoint's. 4 bit, with zero points, GEMM, clip
search on: AutoAWQ's defaults but for the group size. The last line on stdout is JSON: seconds of wall and CPU, and the
peak resident bytes.
"""

import json
import resource
import sys
import time

import numpy as np
import torch
from awq import AutoAWQForCausalLM
from transformers import AutoTokenizer


def main(dtype: str, source: str, samples: str, out: str, group_size: str) -> None:
    ids = np.load(samples)
    config = {"zero_point": True, "q_group_size": int(group_size), "w_bit": 4, "version": "GEMM"}
    started, spent = time.monotonic(), _cpu()
    chosen = dtype if dtype == "auto" else getattr(torch, dtype)
    model = AutoAWQForCausalLM.from_pretrained(source, torch_dtype=chosen, device_map="cpu")
    tokenizer = AutoTokenizer.from_pretrained(source)
    model.quantize(
        tokenizer,
        quant_config=config,
        calib_data=ids.tolist(),
        max_calib_samples=len(ids),
        max_calib_seq_len=ids.shape[1],
    )
    quantized = time.monotonic()
    model.save_quantized(out)
    tokenizer.save_pretrained(out)
    figures = {
        "quantize_wall": round(quantized - started, 1),
        "wall": round(time.monotonic() - started, 1),
        "cpu": round(_cpu() - spent, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print("\n" + json.dumps(figures))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(*sys.argv[1:])
