"""What the user is told of a calibration that is too short for the corrections of `--quality best`."""

from quantkit.outputs.plan import ConversionPlan

_TOKENS_PER_CHANNEL = 2
"""With 0.7 tokens a channel, a q2_k of Qwen2.5-Coder-1.5B diverged more on WikiText-2 than llama.cpp's own did."""


def few_tokens_warning(plan: ConversionPlan) -> tuple[str, ...]:
    """A sentence where the widest input has fewer than two tokens a channel; see `quant.asymmetric`."""
    calibration = plan.calibration
    if calibration is None or not plan.follows_rounded:
        return ()
    inputs = (entry for layer in calibration.layers for entry in layer.inputs if entry.expert is None)
    widest = max((entry.width for entry in inputs), default=0)
    n_samples, seq_len = calibration.samples.tokens.shape
    if n_samples * seq_len >= _TOKENS_PER_CHANNEL * widest:
        return ()
    least = -(-_TOKENS_PER_CHANNEL * widest // seq_len)
    tokens = n_samples * seq_len
    return (
        f"{tokens} calibration tokens are few for --quality best, whose widest input has {widest} channels;"
        f" the output can be worse than without it; use --samples {least} or more",
    )
