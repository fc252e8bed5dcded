"""What the figures come to, in sentences a person understands at once; each is deduced, none is an opinion."""

import math

from quantkit.report.document import Model, Quality, Report, Text
from quantkit.report.figures import change, percent, size, smaller

CLOSE = 0.05
"""A candidate within this much of the reference's perplexity is named as the smallest that is close; the sentence says
the bound."""


def verdict(report: Report) -> list[str]:
    """Sentences, the most important first; judged on the report's first text, the others are told where they differ."""
    text = next((text for text in report.texts if any(model.on(text.name) for model in report.candidates)), None)
    if text is None:
        return []
    ranked = [model for model in report.candidates if _loss(model.on(text.name)) is not None]
    if not ranked:
        return []
    ranked.sort(key=lambda model: _loss(model.on(text.name)) or 0.0)
    if len(ranked) == 1:
        return [_sentence(report, ranked[0], text, f"{ranked[0].label} "), *_elsewhere(report, ranked[0], text)]
    best = ranked[0]
    said = [_sentence(report, best, text, f"{best.label} keeps the most: it "), *_elsewhere(report, best, text)]
    sized = [model for model in ranked if model.bytes]
    smallest = min(sized, key=lambda model: model.bytes or math.inf, default=None)
    close = min(
        (model for model in sized if _within(model.on(text.name))),
        key=lambda model: model.bytes or math.inf,
        default=None,
    )
    if close is not None and close not in (best, smallest):
        opening = f"{close.label} is the smallest that stays within {CLOSE:.0%} of the reference's perplexity: it "
        said += [_sentence(report, close, text, opening)]
    if smallest is not None and smallest is not best:
        said += [_sentence(report, smallest, text, f"{smallest.label} is the smallest: it ")]
        said += _elsewhere(report, smallest, text)
    elif smallest is not None:
        said += [f"{best.label} is also the smallest."]
    return said + _dominated(ranked, text)


def _sentence(report: Report, model: Model, text: Text, opening: str) -> str:
    reference = report.reference
    on = model.on(text.name)
    parts = []
    how_small = smaller(model.bytes, reference.bytes if reference else None)
    if how_small is not None:
        parts.append(f"is {how_small} ({size(model.bytes)})")
    if on is not None and (cost := _cost(on)):
        parts.append(cost)
    if on is not None and on.top1 is not None:
        parts.append(f"picks the reference's most likely token {percent(on.top1)} of the time")
    return f"{opening}{_listed(parts)}." if parts else f"{opening}was measured."


def _cost(on: Quality) -> str:
    if on.ratio is None:
        return ""
    if abs(on.ratio.value - 1) <= 2 * (on.ratio.error or 0.0):
        return f"has the reference's perplexity within the error of the measurement ({change(on.ratio)})"
    return f"changes perplexity by {change(on.ratio)}"


def _elsewhere(report: Report, model: Model, text: Text) -> list[str]:
    found = [
        f"{change(on.ratio)} on {on.text}" for on in model.quality if on.text != text.name and on.ratio is not None
    ]
    return [f"That is on {text.name}; {model.label} changes perplexity by {_listed(found)}."] if found else []


def _dominated(ranked: list[Model], text: Text) -> list[str]:
    """Candidates for which a clearly better one is no larger."""
    said = []
    for place, model in enumerate(ranked):
        for better in ranked[:place]:
            no_larger = better.bytes and model.bytes and better.bytes <= model.bytes
            if no_larger and _clearly(better.on(text.name), model.on(text.name)):
                said.append(f"{model.label} has nothing over {better.label}, which is no larger and keeps more.")
                break
    return said


def _clearly(better: Quality | None, worse: Quality | None) -> bool:
    """Whether their losses differ by more than twice both errors together."""
    errors = [
        (on.kl.mean if on.kl is not None and on.kl.mean is not None else on.ratio) if on is not None else None
        for on in (better, worse)
    ]
    apart = (_loss(worse) or 0.0) - (_loss(better) or 0.0)
    return apart > 2 * math.hypot(*(error.error or 0.0 for error in errors if error is not None))


def _loss(on: Quality | None) -> float | None:
    """What candidates are ranked by: the mean divergence, or the change of perplexity where there is none."""
    if on is None:
        return None
    if on.kl is not None and on.kl.mean is not None:
        return on.kl.mean.value
    return None if on.ratio is None else abs(on.ratio.value - 1)


def _within(on: Quality | None) -> bool:
    return on is not None and on.ratio is not None and on.ratio.value - 1 <= CLOSE


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
