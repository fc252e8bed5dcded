"""Makes the tiny SmallThinker in torch, which transformers has no class of. Runs in the peer's venv.

It follows the published modeling_smallthinker.py: the router reads the layer's input before attention, the experts have
ReLU gates, and their weights are those of the best logits (a softmax over them, or their sigmoids over the sum).
tests/families/with_transformers.py calls this.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.functional import embedding, linear, relu, rms_norm, scaled_dot_product_attention

from tests.families.models import TOKENS, Case
from tests.families.models.smallthinker import layout
from tests.families.without_transformers import Made, made_in_torch


def smallthinker(case: Case) -> Made:
    """SmallThinker under its published names."""
    return made_in_torch(case, layout(case.config), _logits)


def _logits(w: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> torch.Tensor:
    table = w["model.embed_tokens.weight"]
    x = embedding(torch.tensor(TOKENS), table)

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        return rms_norm(x, x.shape[-1:], w[f"{name}.weight"], config["rms_norm_eps"])

    for layer in range(config["num_hidden_layers"]):
        at, entered = f"model.layers.{layer}", x
        x = x + _attention(w, f"{at}.self_attn", config, layer, normed(x, f"{at}.input_layernorm"))
        x = x + _experts(w, f"{at}.block_sparse_moe", config, entered, normed(x, f"{at}.post_attention_layernorm"))
    return linear(normed(x, "model.norm"), w.get("lm_head.weight", table))


def _attention(
    w: Mapping[str, torch.Tensor], at: str, config: Mapping[str, Any], layer: int, x: torch.Tensor
) -> torch.Tensor:
    n, width = len(x), config["head_dim"]

    def heads(name: str) -> torch.Tensor:
        return linear(x, w[f"{at}.{name}_proj.weight"]).reshape(n, -1, width).transpose(0, 1)

    q, k, v = (heads(name) for name in "qkv")
    if config["rope_layout"][layer]:
        frequencies = config["rope_theta"] ** (-torch.arange(0, width, 2) / width)
        turns = torch.outer(torch.arange(n).float(), frequencies)

        def turned(part: torch.Tensor) -> torch.Tensor:
            first, second = part.chunk(2, dim=-1)
            return torch.cat(
                [first * turns.cos() - second * turns.sin(), second * turns.cos() + first * turns.sin()], dim=-1
            )

        q, k = turned(q), turned(k)
    distance = torch.arange(n)[:, None] - torch.arange(n)
    seen = distance >= 0
    if config["sliding_window_layout"][layer]:
        seen &= distance < config["sliding_window_size"]
    groups = len(q) // len(k)
    out = scaled_dot_product_attention(q, k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0), seen)
    return linear(out.transpose(0, 1).reshape(n, -1), w[f"{at}.o_proj.weight"])


def _experts(
    w: Mapping[str, torch.Tensor], at: str, config: Mapping[str, Any], entered: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    best, chosen = linear(entered, w[f"{at}.primary_router.weight"]).topk(config["moe_num_active_primary_experts"])
    if config["moe_primary_router_apply_softmax"]:
        share = best.softmax(dim=-1)
    else:
        share = best.sigmoid() / best.sigmoid().sum(dim=-1, keepdim=True)
    out = torch.zeros_like(x)
    for token, slot in np.ndindex(*chosen.shape):
        gate, up, down = (w[f"{at}.experts.{chosen[token, slot]}.{name}.weight"] for name in ("gate", "up", "down"))
        out[token] += share[token, slot] * linear(relu(linear(x[token], gate)) * linear(x[token], up), down)
    return out
