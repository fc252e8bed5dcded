"""Quantized linears as a library stores and dequantizes them, as JSON: what tests/checkpoint reads without the library.

A case is {"settings": quantization_config, "tensors": {name: [dtype, shape, base64]}, "weights": {name: [...]}}.
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.int32": "I32",
    "torch.int64": "I64",
}
Case = dict[str, Any]


def weights(n_out: int = 16, n_in: int = 64, seed: int = 7) -> np.ndarray:
    """Weights with outliers, float32 (n_out, n_in), that float16 and bfloat16 store exactly."""
    values = np.random.default_rng(seed).standard_t(5, (n_out, n_in)).astype(np.float32) / 8
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def case(settings: dict[str, Any], tensors: dict[str, Any], expected: Any) -> Case:
    """`tensors` of torch by name; `expected`: the dequantized matrix, or matrices by name."""
    by_name = expected if isinstance(expected, dict) else {"layer.weight": expected}
    stored = {name: _of_torch(tensor) for name, tensor in tensors.items()}
    return {"settings": settings, "tensors": stored, "weights": {name: _of_torch(t) for name, t in by_name.items()}}


def write(cases: dict[str, Case]) -> None:
    """Write the cases to the file that the command line names."""
    Path(sys.argv[1]).write_text(json.dumps(cases, separators=(",", ":")).replace('},"', '},\n"') + "\n")


def _of_torch(tensor: Any) -> list[Any]:
    import torch

    tensor = tensor.detach().cpu().contiguous()
    data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return [KINDS[str(tensor.dtype)], list(tensor.shape), base64.b64encode(data).decode()]
