"""Makes the tiny Kimi K3 in torch, which transformers has no class of. Runs in the peer's venv.

The delta rule is transformers' own, token by token; the rest follows the published description and llama.cpp's graph:
attention over earlier hidden states, experts within a latent, SiTU, and the two output gates.
tests/families/with_transformers.py calls this.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import conv1d, embedding, linear, rms_norm, silu
from transformers.models.kimi_linear.modeling_kimi_linear import recurrent_kimi_delta_attention

from tests.families.models import TOKENS, Case, weight
from tests.families.models.kimi import layout
from tests.families.without_transformers import Made

# transformers' constant for the norms within latent attention
_LATENT_EPS = 1e-6


def kimi_k3(case: Case) -> Made:
    """Kimi K3 under its published names, within a checkpoint that also sees images."""
    text = case.config["text_config"]
    tensors = {name: weight(case.seed, name, shape) for name, shape in layout(text).items()}
    w = {name.removeprefix("language_model."): torch.from_numpy(values) for name, values in tensors.items()}
    with torch.no_grad():
        logits = _logits(w, text).numpy()
    native = {"config": dict(case.config), "layout": {name: list(values.shape) for name, values in tensors.items()}}
    return dict(case.config), tensors, logits, native


def _logits(w: Mapping[str, torch.Tensor], text: Mapping[str, Any]) -> torch.Tensor:
    eps, block = text["rms_norm_eps"], text["attn_res_block_size"]
    total = embedding(torch.tensor(TOKENS), w["model.embed_tokens.weight"])
    stored: list[torch.Tensor] = []

    def read(name: str) -> torch.Tensor:
        if not stored:
            return total
        states = torch.stack([*stored, total])
        normed = rms_norm(states, states.shape[-1:], w[f"{name}_norm.weight"], eps)
        return (torch.softmax(linear(normed, w[f"{name}_proj.weight"]), dim=0) * states).sum(dim=0)

    for layer in range(text["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        x = rms_norm(read(at + "self_attention_res"), total.shape[-1:], w[at + "input_layernorm.weight"], eps)
        mix = _delta if layer + 1 in text["linear_attn_config"]["kda_layers"] else _latent
        attended = mix(w, at + "self_attn.", text, x)
        if layer % block == 0:
            stored.append(total)
            total = attended
        else:
            total = total + attended
        x = rms_norm(read(at + "mlp_res"), total.shape[-1:], w[at + "post_attention_layernorm.weight"], eps)
        dense = layer < text["first_k_dense_replace"]
        total = total + (_gated(w, at + "mlp.", text, x) if dense else _experts(w, at + "block_sparse_moe.", text, x))
    total = read("model.output_attn_res")
    return linear(rms_norm(total, total.shape[-1:], w["model.norm.weight"], eps), w["lm_head.weight"])


def _delta(w: Mapping[str, torch.Tensor], at: str, text: Mapping[str, Any], x: torch.Tensor) -> torch.Tensor:
    nested = text["linear_attn_config"]
    heads, width, kernel = nested["num_heads"], nested["head_dim"], nested["short_conv_kernel_size"]
    n = len(x)

    def convolved(part: str) -> torch.Tensor:
        y, taps = linear(x, w[f"{at}{part}_proj.weight"]).T[None], w[f"{at}{part}_conv1d.weight"]
        return silu(conv1d(y, taps, padding=kernel - 1, groups=len(taps))[0, :, :n]).T.reshape(1, n, heads, width)

    forget = linear(linear(x, w[at + "f_a_proj.weight"]), w[at + "f_b_proj.weight"]) + w[at + "dt_bias"]
    rate = w[at + "A_log"][:heads].exp()[:, None]
    decay = nested["gate_lower_bound"] * torch.sigmoid(rate * forget.reshape(1, n, heads, width))
    beta = torch.sigmoid(linear(x, w[at + "b_proj.weight"]))[None]
    q, k, v = (convolved(part) for part in "qkv")
    out, _ = recurrent_kimi_delta_attention(
        q, k, v, g=decay, beta=beta, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=True
    )
    out = rms_norm(out[0], (width,), w[at + "o_norm.weight"], text["rms_norm_eps"]).reshape(n, -1)
    return linear(out * torch.sigmoid(linear(x, w[at + "g_proj.weight"])), w[at + "o_proj.weight"])


def _latent(w: Mapping[str, torch.Tensor], at: str, text: Mapping[str, Any], x: torch.Tensor) -> torch.Tensor:
    n, heads, rank = len(x), text["num_attention_heads"], text["kv_lora_rank"]
    nope, rope, value = text["qk_nope_head_dim"], text["qk_rope_head_dim"], text["v_head_dim"]

    def normed(y: torch.Tensor, name: str) -> torch.Tensor:
        return rms_norm(y, y.shape[-1:], w[f"{at}{name}.weight"], _LATENT_EPS)

    q = linear(normed(linear(x, w[at + "q_a_proj.weight"]), "q_a_layernorm"), w[at + "q_b_proj.weight"])
    q = q.reshape(n, heads, nope + rope)
    joint = linear(x, w[at + "kv_a_proj_with_mqa.weight"])
    kv = linear(normed(joint[:, :rank], "kv_a_layernorm"), w[at + "kv_b_proj.weight"]).reshape(n, heads, nope + value)
    k = torch.cat([kv[..., :nope], joint[:, None, rank:].expand(n, heads, rope)], dim=-1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * (nope + rope) ** -0.5
    scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
    out = torch.einsum("hij,jhd->ihd", scores.softmax(dim=-1), kv[..., nope:]).reshape(n, -1)
    return linear(out * torch.sigmoid(linear(x, w[at + "g_proj.weight"])), w[at + "o_proj.weight"])


def _situ(text: Mapping[str, Any], gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    bound, of_up = text["activation_situ_beta"], text["activation_situ_linear_beta"]
    return bound * torch.tanh(gate / bound) * torch.sigmoid(gate) * of_up * torch.tanh(up / of_up)


def _gated(
    w: Mapping[str, torch.Tensor],
    at: str,
    text: Mapping[str, Any],
    x: torch.Tensor,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> torch.Tensor:
    gate, up, down = (w[f"{at}{name}.weight"] for name in names)
    return linear(_situ(text, linear(x, gate), linear(x, up)), down)


def _experts(w: Mapping[str, torch.Tensor], at: str, text: Mapping[str, Any], x: torch.Tensor) -> torch.Tensor:
    scores = torch.sigmoid(linear(x, w[at + "gate.weight"]))
    chosen = (scores + w[at + "gate.e_score_correction_bias"]).topk(text["num_experts_per_token"], dim=-1).indices
    share = scores.gather(1, chosen)
    share = share / share.sum(dim=-1, keepdim=True) * text["routed_scaling_factor"]
    latent = linear(x, w[at + "routed_expert_down_proj.weight"])
    out = torch.zeros_like(latent)
    for token, experts in enumerate(chosen.tolist()):
        for slot, expert in enumerate(experts):
            answer = _gated(w, f"{at}experts.{expert}.", text, latent[token], ("w1", "w3", "w2"))
            out[token] += share[token, slot] * answer
    out = rms_norm(out, out.shape[-1:], w[at + "routed_expert_norm.weight"], text["rms_norm_eps"])
    return linear(out, w[at + "routed_expert_up_proj.weight"]) + _gated(w, at + "shared_experts.", text, x)
