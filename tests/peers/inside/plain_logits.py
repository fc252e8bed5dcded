"""The logits of a checkpoint whose linears have other weights: what a library's dequantization of them computes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def save_logits(source: str, weights: Mapping[str, torch.Tensor], ids: list[int], out: Path) -> None:
    """Write float32 (n_tokens, n_vocab) to `out`. `weights`: (n_out, n_in) by the linear's name."""
    model = AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.float32).eval()
    modules = dict(model.named_modules())
    for name, weight in weights.items():
        modules[name].weight.data = weight.detach().to(torch.float32).clone()
    with torch.inference_mode():
        np.save(out, model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy())
