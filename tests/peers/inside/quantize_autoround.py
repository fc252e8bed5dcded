"""Quantize a checkpoint with AutoRound; runs in its environment.

    quantize_autoround.py FORMAT SOURCE SAMPLES.npy OUT GROUP_SIZE ITERATIONS

FORMAT is auto_gptq (symmetric) or auto_awq (with zero points), both of 4 bits. 0 ITERATIONS is its rounding without
tuning (opt-RTN). The last line on stdout is JSON: seconds of wall and CPU, and the peak resident bytes.
"""

import json
import resource
import sys
import time

import numpy as np
import torch
from auto_round import AutoRound


def main(kind: str, source: str, samples: str, out: str, group_size: str, iterations: str) -> None:
    ids = np.load(samples).astype(np.int64)
    started, spent = time.monotonic(), _cpu()
    options = {"iters": int(iterations)} if int(iterations) else {"iters": 0, "disable_opt_rtn": False}
    model = AutoRound(
        source, scheme="W4A16", sym=kind == "auto_gptq", group_size=int(group_size), device_map="cpu",
        dataset=[torch.from_numpy(row[None]) for row in ids], nsamples=len(ids), seqlen=ids.shape[1], **options,
    )  # fmt: skip
    model.quantize_and_save(out, format=kind)
    figures = {
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
