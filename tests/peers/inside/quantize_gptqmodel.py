"""Quantize a checkpoint with GPTQModel; runs in its environment.

    quantize_gptqmodel.py METHOD DTYPE SOURCE SAMPLES.npy OUT [FIELD=VALUE ...]

METHOD is gptq or awq. DTYPE is that of weights and activations while it works: auto is GPTQModel's own choice, the
checkpoint's; a CPU without bf16 arithmetic is 2.5 times as fast in float32, and loses nothing. The fields are those of
GPTQModel's QuantizeConfig, as JSON; what is not given is its default. The last line on stdout is JSON: seconds of wall
and CPU, and the peak resident bytes.
"""

import json
import resource
import sys
import time
from typing import Any

import numpy as np
import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
from gptqmodel.quantization import FORMAT, METHOD


def main(method: str, dtype: str, source: str, samples: str, out: str, *fields: str) -> None:
    options: dict[str, Any] = dict(field.split("=", 1) for field in fields)
    options = {name: json.loads(value) for name, value in options.items()}
    if method == "awq":
        options |= {"method": METHOD.AWQ, "format": FORMAT.GEMM}
    config = QuantizeConfig(bits=4, **options)
    ids = np.load(samples).tolist()
    started, spent = time.monotonic(), _cpu()
    model = GPTQModel.load(source, config, dtype=dtype if dtype == "auto" else getattr(torch, dtype))
    print("dtype", next(model.model.parameters()).dtype, file=sys.stderr)
    AwqTorchLinear.SUPPORTS_DTYPES = [
        *AwqTorchLinear.SUPPORTS_DTYPES,
        torch.float32,
    ]  # it packs what comes in float32 too
    # without a GPU its choice for AWQ's packing is refused, and the one in torch has to be asked for
    backend = BACKEND.AWQ_TORCH if method == "awq" else BACKEND.AUTO
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]
    model.quantize(rows, batch_size=1, backend=backend)
    quantized = time.monotonic()
    model.save(out)
    figures = {
        "quantize_wall": round(quantized - started, 1),
        "wall": round(time.monotonic() - started, 1),
        "cpu": round(_cpu() - spent, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "config": {name: str(value) for name, value in vars(config).items()},
    }
    print("\n" + json.dumps(figures))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(*sys.argv[1:])
