"""Run in an environment that has torch: matrices rounded to GGUF types with error feedback on tensors, on the CPU.

Arguments: an .npz with `weight` (n_out, n_in), `gram` (n_in, n_in) and `count`; the .npz to write, with the bytes of
each type. torch does not compile the steps.
"""

import os
import sys
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

sys.path.append(os.environ["MORE_PACKAGES"])

from quantkit.forward.arrays import place
from quantkit.gguf.blocks import FORMATS
from quantkit.quant.feedback import curvature, quantize_with_feedback
from quantkit.workers import Workers


def refuse(tensor: torch.Tensor, *_: Any) -> None:
    raise AssertionError(f"numpy took a tensor {tuple(tensor.shape)}")


with np.load(sys.argv[1]) as arrays:
    weight, gram = (place(arrays[name], torch.device("cpu")) for name in ("weight", "gram"))
    count = int(arrays["count"])
made = {}
plain = patch.object(torch, "compile", lambda run, **_: run)
with plain, patch.object(torch.Tensor, "__array__", refuse), Workers(2) as workers:
    prepared = curvature(gram, count)
    for kind in FORMATS:
        made[kind.name] = quantize_with_feedback(kind, weight, prepared, workers=workers)
np.savez(sys.argv[2], **made)
