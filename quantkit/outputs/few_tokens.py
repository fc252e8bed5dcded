"""What the user is told of a calibration with too few tokens, or with samples that are too long for the model."""

from dataclasses import dataclass
from typing import Any

from quantkit.forward.feed_forward import expert_count, experts_used
from quantkit.outputs.calibration import CalibrationPlan
from quantkit.outputs.plan import ConversionPlan
from quantkit.stream.routing import EXPERT_FLOOR

_TOKENS_PER_CHANNEL = 2
"""With 0.7 tokens a channel, a q2_k of Qwen2.5-Coder-1.5B diverged more on WikiText-2 than llama.cpp's own did."""


@dataclass(frozen=True)
class _Widest:
    """The widest input of the layers, or of their routed experts, `width` channels. `share`: of the tokens it sees."""

    width: int
    share: float = 1.0

    @property
    def needed(self) -> float:
        """The calibration tokens that it needs. An expert that sees too few takes more of them, up to EXPERT_FLOOR."""
        least = _TOKENS_PER_CHANNEL * self.width
        return least if least <= EXPERT_FLOOR else least / self.share


def calibration_warnings(plan: ConversionPlan) -> tuple[str, ...]:
    """Sentences on too few tokens, and on samples of more tokens than the model was trained for."""
    return (*_long_samples(plan), *_few_tokens(plan))


def _long_samples(plan: ConversionPlan) -> tuple[str, ...]:
    if plan.samples is None:
        return ()
    context, seq_len = _trained_context(plan), plan.samples.tokens.shape[1]
    if context is None or not 0 < context < seq_len:
        return ()
    return (f"{plan.name} was trained for {context} tokens, and samples have {seq_len}; use --seq-len {context}",)


def _trained_context(plan: ConversionPlan) -> int | None:
    """Tokens of the longest text that the model was trained for; None if not stated, or if positions are scaled."""
    context: Any
    if plan.callback is not None:
        model = plan.callback.model
        values = {key.key: key.value for key in model.keys}
        arch = values.get("general.architecture")
        context = values.get(f"{arch}.context_length")
        # factors of scaled positions: rope_freqs.weight, rope_factors_long.weight
        has_factors = any(tensor.name.startswith(("rope_freqs.", "rope_factors_")) for tensor in model.tensors)
        is_scaled = has_factors or values.get(f"{arch}.rope.scaling.type", "none") != "none"
    elif plan.calibration is not None:
        config = plan.calibration.native.config
        rope = config.get("rope_parameters") or {}
        context = config.get("max_position_embeddings")
        is_scaled = bool(config.get("rope_scaling")) or rope.get("rope_type", "default") != "default"
    else:
        return None
    return int(context) if isinstance(context, int) and not is_scaled else None


def _few_tokens(plan: ConversionPlan) -> tuple[str, ...]:
    """A sentence where the widest input, or an expert's, has fewer than two tokens a channel."""
    calibration = plan.calibration
    if calibration is None or not plan.follows_rounded:
        return ()
    n_samples, seq_len = calibration.samples.tokens.shape
    tokens = n_samples * seq_len
    widest = max((_widest(calibration), *_widest_of_experts(calibration)), key=lambda entry: entry.needed)
    if tokens >= widest.needed:
        return ()
    if widest.share == 1:
        whose = f", whose widest input has {widest.width} channels"
    else:
        of_expert = max(round(tokens * widest.share), min(tokens, EXPERT_FLOOR))
        whose = f": an expert sees about {of_expert} of them, and its widest input has {widest.width} channels"
    return (
        f"{tokens} calibration tokens are few for --quality best{whose};"
        f" the output can be worse than without it; use --samples {-int(-widest.needed // seq_len)} or more",
    )


def _widest(calibration: CalibrationPlan) -> _Widest:
    inputs = (entry for layer in calibration.layers for entry in layer.inputs if entry.expert is None)
    return _Widest(max((entry.width for entry in inputs), default=0))


def _widest_of_experts(calibration: CalibrationPlan) -> list[_Widest]:
    """That of each layer with routed experts, each of which sees an equal share of the tokens."""
    widest = []
    for layer in calibration.layers:
        widths = [entry.width for entry in layer.inputs if entry.expert == 0]
        part = calibration.native.decoder.layer(layer.number)
        if widths and part.experts is not None:
            share = experts_used(part.experts, part.layer) / expert_count(part.experts, part.layer)
            widest.append(_Widest(max(widths), share))
    return widest
