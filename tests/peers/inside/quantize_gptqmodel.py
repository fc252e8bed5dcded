"""Quantize a checkpoint with GPTQModel; runs in its environment.

    quantize_gptqmodel.py METHOD DTYPE SOURCE SAMPLES.npy OUT [FIELD=VALUE ...]

METHOD is gptq or awq. DTYPE is that of weights and activations while it works: auto is GPTQModel's own choice, the
checkpoint's; a CPU without bf16 arithmetic is 2.5 times as fast in float32, and loses nothing. The fields are those of
GPTQModel's QuantizeConfig, as JSON; what is not given is its default. The last line on stdout is JSON: seconds of wall
and CPU, and the peak resident bytes.
"""

import inspect
import json
import resource
import sys
import textwrap
import time
from typing import Any

import numpy as np
import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.looper import awq_processor
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
    _repair_float32()
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


def _repair_float32() -> None:
    """AWQ in float32 on a CPU, as it is meant.

    The scale search keeps a copy of the weights in float32 on the CPU, changes the weights and restores them from it.
    Where they are that already, the copy is no copy, and the weights come out ruined. And its packer refuses float32.
    """
    processor = awq_processor.AWQProcessor
    source = inspect.getsource(processor._compute_best_scale)
    no_copy = "fc.weight.detach().to(torch.float32).cpu().contiguous()"
    assert source.count(no_copy) == 1, "this is not the GPTQModel that was repaired"
    made: dict[str, Any] = {}
    repaired = textwrap.dedent(source).replace(no_copy, "fc.weight.detach().to(torch.float32).cpu().clone()")
    exec(repaired, vars(awq_processor), made)
    processor._compute_best_scale = made["_compute_best_scale"]
    AwqTorchLinear.SUPPORTS_DTYPES = [*AwqTorchLinear.SUPPORTS_DTYPES, torch.float32]


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(*sys.argv[1:])
