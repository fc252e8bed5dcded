"""Quantize a checkpoint with GPTQModel; runs in its environment.

    quantize_gptqmodel.py METHOD SOURCE SAMPLES.npy OUT [FIELD=VALUE ...]

METHOD is gptq or awq; the fields are those of GPTQModel's QuantizeConfig, what is not given is its default. Prints one
JSON line with the seconds of wall and CPU of the quantization and of saving, and the peak resident bytes.
"""

import json
import resource
import sys
import time
from typing import Any

import numpy as np
from gptqmodel import GPTQModel, QuantizeConfig
from gptqmodel.quantization import FORMAT, METHOD


def main(method: str, source: str, samples: str, out: str, *fields: str) -> None:
    options: dict[str, Any] = dict(field.split("=", 1) for field in fields)
    options = {name: json.loads(value) for name, value in options.items()}
    if method == "awq":
        options |= {"method": METHOD.AWQ, "format": FORMAT.GEMM}
    config = QuantizeConfig(bits=4, **options)
    ids = np.load(samples).tolist()
    started, spent = time.monotonic(), _cpu()
    model = GPTQModel.load(source, config)
    print("dtype", next(model.model.parameters()).dtype, file=sys.stderr)
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids], batch_size=1)
    quantized = time.monotonic()
    model.save(out)
    figures = {
        "quantize_wall": round(quantized - started, 1),
        "wall": round(time.monotonic() - started, 1),
        "cpu": round(_cpu() - spent, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "config": {name: str(value) for name, value in vars(config).items()},
    }
    print(json.dumps(figures))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(*sys.argv[1:])
