"""The words of `quantkit inspect` for the shape of a model: layers, heads, experts, context."""

from quantkit.inspection.description import Quantization, Shape


def quantized_words(description: Quantization) -> str:
    """Quantized and kept linears, and how they are packed."""
    words = [f"{description.linears} linears"]
    if description.symmetric is not None:
        words.append("symmetric" if description.symmetric else "asymmetric")
    if description.act_order:
        words.append("act-order")
    if description.packing:
        words.append(f"packed as {description.packing}")
    kept = f"; kept as they were: {', '.join(description.kept)}" if description.kept else ""
    return ", ".join(words) + kept


def shape_words(shape: Shape) -> str:
    """Layers, widths and heads."""
    words = []
    if shape.layers:
        words.append(f"{shape.layers} layers")
    if shape.hidden:
        words.append(f"hidden {shape.hidden}")
    if shape.ffn:
        words.append(f"feed-forward {shape.ffn}")
    if shape.heads:
        shared = f" ({shape.kv_heads} for keys and values)" if shape.kv_heads != shape.heads else ""
        words.append(f"{shape.heads} heads{shared}" + (f" of {shape.head_dim}" if shape.head_dim else ""))
    return ", ".join(words)


def expert_words(shape: Shape) -> str:
    """Experts, and how many each token uses; empty without experts."""
    if not shape.experts:
        return ""
    words = [f"{shape.experts}, {shape.experts_used or '?'} for each token"]
    if shape.experts_shared:
        words.append(f"{shape.experts_shared} shared")
    if shape.expert_ffn:
        words.append(f"feed-forward {shape.expert_ffn}")
    return ", ".join(words)


def context_words(shape: Shape) -> str:
    """Context, sliding window and positions."""
    words = [f"{shape.context} tokens"] if shape.context else []
    if shape.sliding_window:
        words.append(f"sliding window {shape.sliding_window}")
    if shape.positions == "rope":
        base = f" base {shape.rope_base:.10g}" if shape.rope_base else ""
        part = f" on {shape.rope_dimensions} of {shape.head_dim}" if shape.rope_dimensions else ""
        words.append(f"rope{base}{part}" + (f", scaling {shape.rope_scaling}" if shape.rope_scaling else ""))
    elif shape.positions:
        words.append(
            {"alibi": "ALiBi", "none": "no positions in attention"}.get(shape.positions, f"{shape.positions} positions")
        )
    return ", ".join(words)
