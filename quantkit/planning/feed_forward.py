"""The graph of a feed-forward, as llama.cpp builds it (build_ffn, build_moe_ffn)."""

from quantkit.planning.drawing import Drawing
from quantkit.planning.shape import Layer
from quantkit.planning.tensors import F32, I32, Tensor, fresh, matmul, matmul_id, same, stored, view

# llama.cpp's LLAMA_EXPERT_GATING_FUNC_TYPE_SQRT_SOFTPLUS, of two operations
_SQRT_SOFTPLUS = 4


def feed_forward(d: Drawing, x: Tensor, layer: Layer, logits: Tensor | None = None) -> Tensor:
    """The feed-forward of a layer: dense, or routed experts with shared ones.

    `logits`: the router's output, where it has read something else than `x`.
    """
    if not layer.has("ffn_down_exps.weight"):
        return _dense_ffn(d, x, layer)
    latent = next((name for name in ("ffn_latent", "ffn_routed") if layer.has(f"{name}_down.weight")), None)
    routed = d.linear(layer, f"{latent}_down", x) if latent else x
    out = _experts(d, routed, layer, d.linear(layer, "ffn_gate_inp", x) if logits is None else logits)
    if layer.has("ffn_routed_norm.weight"):
        out = d.norm(out, "ffn_routed_norm", layer.tensors)
    if latent:
        out = d.linear(layer, f"{latent}_up", out)
    if layer.has("ffn_down_shexp.weight"):
        shared = _dense_ffn(d, x, layer, "_shexp")
        if layer.has("ffn_gate_inp_shexp.weight"):
            gate = matmul(d.named("ffn_gate_inp_shexp.weight"), 1, x)
            gate = same(gate) if d.shape.traits.sigmoid_shared_gate else same(same(gate), gate)
            shared = same(shared, gate)
        out = same(out, shared)
    return out


def _dense_ffn(d: Drawing, x: Tensor, layer: Layer, suffix: str = "") -> Tensor:
    up = d.linear(layer, "ffn_up" + suffix, x)
    if layer.has(f"ffn_gate{suffix}.weight"):
        gate = d.linear(layer, "ffn_gate" + suffix, x)
        # the gate is the first operand, but is computed after the up projection
        hidden = _situ(d, gate, up) if _has_situ(d) else fresh(gate.shape, gate, up)
    elif up.shape[0] == 2 * layer.tensors[f"ffn_down{suffix}.weight"][-1]:
        hidden = fresh((up.shape[0] // 2, d.n), up)
    else:
        hidden = same(up)
    return d.linear(layer, "ffn_down" + suffix, hidden)


def _has_situ(d: Drawing) -> bool:
    return d.shape.keys.get("activation.situ_beta") is not None


def _situ(d: Drawing, gate: Tensor, up: Tensor) -> Tensor:
    """SiTU's product of gate and up, in single operations."""
    gate = same(same(same(same(gate))), same(gate))
    return same(gate, same(same(same(up))) if d.shape.number("activation.situ_linear_beta") > 0 else up)


def experts_beside_dense(d: Drawing, x: Tensor, layer: Layer) -> Tensor:
    """The sum of a dense feed-forward and of experts on the same hidden states `x`, with separate norms (Gemma 4)."""
    dense = _dense_ffn(d, d.norm(x, "ffn_norm", layer.tensors), layer)
    dense = d.norm(dense, "post_ffw_norm_1", layer.tensors)
    normed = d.norm(x, "pre_ffw_norm_2", layer.tensors)
    # the router has a norm without a weight, a factor and a scale
    routed = same(same(same(x)), weight=d.named("ffn_gate_inp.scale"))
    out = _experts(d, normed, layer, matmul(d.named("ffn_gate_inp.weight"), layer.rows("ffn_gate_inp"), routed))
    return same(dense, d.norm(out, "post_ffw_norm_2", layer.tensors))


def _experts(d: Drawing, x: Tensor, layer: Layer, logits: Tensor) -> Tensor:
    n, traits, used = d.n, d.shape.traits, d.shape.n_expert_used
    count = layer.tensors["ffn_down_exps.weight"][0]
    probabilities = logits if traits.softmax_of_chosen else same(logits)
    if d.shape.number("expert_gating_func") == _SQRT_SOFTPLUS:
        probabilities = same(probabilities)
    chosen = same(probabilities, weight=d.named("exp_probs_b.bias")) if layer.has("exp_probs_b.bias") else probabilities
    if traits.weighted_input:
        chosen = logits  # the order is the same, and no bias comes between
    groups = int(d.shape.number("expert_group_count"))
    if groups > 1:
        chosen = _of_the_best_groups(d, chosen, groups, int(d.shape.number("expert_group_used_count")))
    if layer.has("ffn_gate_tid2eid.weight"):
        ids = fresh((used, n), d.tokens, size=I32)
        ids.weight = d.named("ffn_gate_tid2eid.weight")
    else:
        order = fresh((count, n), chosen, size=I32)
        ids = view(order, (used, n), (count * I32,))
    weights = fresh((1, used, n), view(probabilities, (1, count, n)), ids)
    if traits.softmax_of_chosen:
        weights = view(same(view(weights, (used, n))), (1, used, n))
    elif traits.expert_weights_summed_to_one and d.shape.keys.get("expert_weights_norm", True):
        flat = view(weights, (used, n))
        weights = view(same(flat, same(fresh((1, n), flat))), (1, used, n))
    if d.shape.number("expert_weights_scale") not in (0.0, 1.0):
        weights = same(weights)
    d.graph.expand(weights)
    n_embd, inner = x.shape[0], layer.tensors["ffn_down_exps.weight"][-1]
    x = same(fresh((x.shape[0], used, n), x), weights) if traits.weighted_input else view(x, (x.shape[0], 1, n))
    if layer.has("ffn_gate_up_exps.weight"):
        both = matmul_id(d.named("ffn_gate_up_exps.weight"), 2 * inner, x, ids)
        stride = (2 * inner * F32, 2 * inner * used * F32)
        hidden = fresh((inner, used, n), *(view(both, (inner, used, n), stride) for _ in range(2)))
    else:
        up = _expert_linear(d, "ffn_up_exps", layer, inner, x, ids)
        if layer.has("ffn_gate_exps.weight"):
            gate = _expert_linear(d, "ffn_gate_exps", layer, inner, x, ids)
            hidden = _situ(d, gate, up) if _has_situ(d) else fresh((inner, used, n), gate, up)
        else:
            hidden = same(up)
    down = _expert_linear(d, "ffn_down_exps", layer, n_embd, hidden, ids)
    if layer.has("ffn_down_exps.scale"):
        scales = fresh((1, count, n))
        scales.weight = d.named("ffn_down_exps.scale")
        down = same(down, fresh((1, used, n), scales, ids))
    if not traits.weighted_input:
        down = same(down, weights)
    d.graph.expand(down)
    width = n_embd * F32
    views = [d.graph.expand(view(down, (n_embd, n), (width * used,))) for _ in range(used)]
    total = views[0] if used > 1 else fresh((n_embd, n), views[0])
    for part in views[1:]:
        total = d.graph.expand(same(total, part))
    return total


def _of_the_best_groups(d: Drawing, scores: Tensor, groups: int, used: int) -> Tensor:
    """The scores (experts, tokens) with those outside the `used` groups of the highest two scores masked."""
    count, n = scores.shape[0], d.n
    size = count // groups
    grouped = view(scores, (size, groups, n))
    order = fresh((size, groups, n), grouped, size=I32)
    two = view(order, (2, groups, n), (size * I32, size * groups * I32))
    best = fresh((1, 2, groups, n), view(grouped, (1, size, groups, n)), two)
    sums = view(fresh((1, groups, n), view(best, (2, groups, n))), (groups, n))
    chosen = view(fresh((groups, n), sums, size=I32), (used, n), (groups * I32,))
    kept = fresh((size, used, n), grouped, chosen)
    return view(stored(fresh((size, groups, n), grouped), kept, chosen), (count, n))


def _expert_linear(d: Drawing, name: str, layer: Layer, rows: int, x: Tensor, ids: Tensor) -> Tensor:
    out = matmul_id(d.named(name + ".weight"), rows, x, ids)
    return same(out, ids, weight=d.named(name + ".bias")) if layer.has(name + ".bias") else out
