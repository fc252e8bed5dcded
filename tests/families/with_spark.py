"""Makes the tiny Spark X2.5 in torch, which transformers has no class of. Runs in the peer's venv.

It follows the published description: one matrix for queries, keys and values, a sigmoid gate for each head after
attention, and rotary positions whose base and share of a head depend on the kind of layer.
tests/families/with_transformers.py calls this.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import embedding, gelu, linear, rms_norm, scaled_dot_product_attention

from tests.families.models import TOKENS, Case
from tests.families.models.spark import layout
from tests.families.without_transformers import Made, made_in_torch


def spark(case: Case) -> Made:
    """Spark X2.5 under its published names."""
    return made_in_torch(case, layout(case.config), _logits)


def _logits(w: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> torch.Tensor:
    table = w["model.embedding.weight"]
    x = embedding(torch.tensor(TOKENS), table)

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        return rms_norm(x, x.shape[-1:], w[f"{name}.weight"], config["rms_norm_eps"])

    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        x = x + _attention(w, f"{at}.self_attn", config, layer, normed(x, f"{at}.input_layernorm"))
        y = normed(x, f"{at}.post_attention_layernorm")
        gate, up, down = (w[f"{at}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x + linear(gelu(linear(y, gate)) * linear(y, up), down)
    return linear(normed(x, "model.norm"), w.get("lm_head.weight", table))


def _turned(x: torch.Tensor, settings: Mapping[str, Any]) -> torch.Tensor:
    """The first values of each head (heads, n, width) after the rotation of halves."""
    width = int(x.shape[-1] * settings["partial_rotary_factor"])
    frequencies = settings["rope_theta"] ** (-torch.arange(0, width, 2) / width)
    turns = torch.outer(torch.arange(x.shape[1]).float(), frequencies)
    first, second = x[..., :width].chunk(2, dim=-1)
    halves = first * turns.cos() - second * turns.sin(), second * turns.cos() + first * turns.sin()
    return torch.cat([*halves, x[..., width:]], dim=-1)


def _attention(
    w: Mapping[str, torch.Tensor], at: str, config: Mapping[str, Any], layer: int, x: torch.Tensor
) -> torch.Tensor:
    n, heads, kv_heads = len(x), config["num_attention_heads"], config["num_key_value_heads"]
    kind = config["layer_types"][layer]
    all_heads = linear(x, w[f"{at}.q_k_v_proj.weight"]).reshape(n, -1, config["head_dim"]).transpose(0, 1)
    q, k, v = all_heads.split([heads, kv_heads, kv_heads])
    q, k = (_turned(part, config["rope_parameters"][kind]) for part in (q, k))
    distance = torch.arange(n)[:, None] - torch.arange(n)
    seen = distance >= 0
    if kind == "sliding_attention":
        seen &= distance < config["sliding_window"]
    groups = heads // kv_heads
    out = scaled_dot_product_attention(q, k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0), seen)
    out = out.transpose(0, 1) * torch.sigmoid(linear(x, w[f"{at}.g_proj.weight"]))[..., None]
    return linear(out.reshape(n, -1), w[f"{at}.out_proj.weight"])
