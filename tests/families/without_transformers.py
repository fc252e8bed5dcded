"""Tiny models of classes that transformers does not have, whose logits a module beside this one computes in torch."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from tests.families.models import Case, weight

Made = tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray, dict[str, Any]]
"""config.json, tensors, logits, and the native config and shapes, see `with_transformers.build`."""


def made_in_torch(
    case: Case,
    layout: Mapping[str, tuple[int, ...]],
    logits: Callable[[Mapping[str, torch.Tensor], Mapping[str, Any]], torch.Tensor],
) -> Made:
    """The case's model with tensors of the shapes `layout`. `logits`: a function of these and of config.json.

    `publish` of the case may change the values, not the names or shapes.
    """
    config = dict(case.config)
    tensors = {name: weight(case.seed, name, shape) for name, shape in layout.items()}
    if case.publish:
        config, tensors = case.publish(config, tensors)
    with torch.no_grad():
        found = logits({name: torch.from_numpy(values) for name, values in tensors.items()}, config).numpy()
    return config, tensors, found, {"config": config, "layout": {name: list(shape) for name, shape in layout.items()}}


def rms_normed(w: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Callable[[torch.Tensor, str], torch.Tensor]:
    """A function of (x, name): x over its root mean square along the last axis, times the tensor `name`."""
    eps = config["rms_norm_eps"]
    return lambda x, name: rms_norm(x, x.shape[-1:], w[f"{name}.weight"], eps)


def in_heads(x: torch.Tensor, width: int) -> torch.Tensor:
    """(tokens, heads * width) as (heads, tokens, width)."""
    return x.reshape(len(x), -1, width).transpose(0, 1)


def rotated(x: torch.Tensor, theta: float, width: int) -> torch.Tensor:
    """The first `width` values of each head (heads, tokens, head width) after rotation: i with i + width / 2."""
    turns = torch.outer(torch.arange(x.shape[1]).float(), theta ** (-torch.arange(0, width, 2) / width))
    first, second = x[..., :width].chunk(2, dim=-1)
    halves = first * turns.cos() - second * turns.sin(), second * turns.cos() + first * turns.sin()
    return torch.cat([*halves, x[..., width:]], dim=-1)


def attended(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = None, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Causal attention of (heads, tokens, width) with shared key heads: (tokens, heads * width of values).

    `bias`: (heads, tokens, tokens), what is added to the scores.
    """
    n = q.shape[1]
    distance = torch.arange(n)[:, None] - torch.arange(n)
    unseen = (distance < 0) | (distance >= (window or n))
    mask = torch.zeros(n, n).masked_fill(unseen, -torch.inf) + (0 if bias is None else bias)
    groups = len(q) // len(k)
    out = scaled_dot_product_attention(q, k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0), mask)
    return out.transpose(0, 1).reshape(n, -1)
