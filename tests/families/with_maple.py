"""Makes the tiny Maple in torch, which transformers has no class of. Runs in the peer's venv.

It follows llama.cpp's description of the published code: layers with a window rotate part of each head, the others have
neither; gate and up of an expert are limited to 7 before SiLU. tests/families/with_transformers.py calls this.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.functional import embedding, linear, silu

from tests.families.models import TOKENS, Case
from tests.families.models.maple import layout
from tests.families.without_transformers import Made, attended, in_heads, made_in_torch, rms_normed, rotated


def maple(case: Case) -> Made:
    """Maple under its published names."""
    return made_in_torch(case, layout(case.config), _logits)


def _logits(w: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> torch.Tensor:
    x = embedding(torch.tensor(TOKENS), w["model.embed_tokens.weight"])
    normed = rms_normed(w, config)
    for layer, kind in enumerate(config["layer_types"]):
        at = f"model.layers.{layer}"
        y = normed(x, f"{at}.input_layernorm")
        q, k, v = (in_heads(linear(y, w[f"{at}.self_attn.{name}_proj.weight"]), config["head_dim"]) for name in "qkv")
        q, k = normed(q, f"{at}.self_attn.q_norm"), normed(k, f"{at}.self_attn.k_norm")
        window = None
        if kind == "sliding_attention":
            window = config["sliding_window"]
            width = int(config["head_dim"] * config["partial_rotary_factor"])
            q, k = (rotated(part, config["rope_theta"], width) for part in (q, k))
        x = x + linear(attended(q, k, v, window), w[f"{at}.self_attn.o_proj.weight"])
        x = x + _experts(w, f"{at}.mlp", config, normed(x, f"{at}.post_attention_layernorm"))
    return linear(normed(x, "model.norm"), w["lm_head.weight"])


def _experts(w: Mapping[str, torch.Tensor], at: str, config: Mapping[str, Any], x: torch.Tensor) -> torch.Tensor:
    best, chosen = linear(x, w[f"{at}.gate.weight"]).softmax(dim=-1).topk(config["num_experts_per_tok"])
    share = best / best.sum(dim=-1, keepdim=True)
    out = torch.zeros_like(x)
    for token, slot in np.ndindex(*chosen.shape):
        gate, up, down = (
            w[f"{at}.experts.{chosen[token, slot]}.{name}_proj.weight"] for name in ("gate", "up", "down")
        )
        inner = silu(linear(x[token], gate).clamp(max=7.0)) * linear(x[token], up).clamp(-7.0, 7.0)
        out[token] += share[token, slot] * linear(inner, down)
    return out
