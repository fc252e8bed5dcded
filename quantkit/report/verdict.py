"""The conclusions from the figures, in sentences. Each follows from the figures by a rule."""

import math

from quantkit.measurement.document import Model, Quality, Report, Text
from quantkit.report.figures import change, percent, plus_minus, smaller
from quantkit.units import listed

CLOSE = 0.05
"""Relative bound on the perplexity: the smallest candidate within it is named as close, with the bound."""


def verdict(report: Report) -> list[str]:
    """Sentences, the most important first; candidates are ranked on the first text that any was measured on."""
    text = next((text for text in report.texts if any(model.on(text.name) for model in report.candidates)), None)
    if text is None:
        return []
    ranked = [model for model in report.candidates if _loss(model.on(text.name)) is not None]
    if not ranked:
        return []
    ranked.sort(key=lambda model: _loss(model.on(text.name)) or 0.0)
    best = ranked[0]
    doubts = _worse_than_guessing(report, text)
    smallest = min((model for model in ranked if model.bytes), key=_size, default=None)
    if len(ranked) == 1:
        opening = best.label
    else:
        opening = f"{best.label} keeps the most{' and is the smallest' if best is smallest else ''}"
    sentences = [*doubts, f"{opening}: {_cost(report, best, text)}.", *_other_rank(ranked, text)]
    if more := _more(best, text):
        sentences.append(f"{best.label}: {more[0][0].lower()}{more[0][1:]} {' '.join(more[1:])}".strip())
    close = min((model for model in ranked if model.bytes and _within(model.on(text.name))), key=_size, default=None)
    if close is not None and close not in (best, smallest):
        opening = f"{close.label} is the smallest within {CLOSE:.0%} of the reference's perplexity"
        sentences.append(" ".join([f"{opening}: {_cost(report, close, text)}.", *_more(close, text)]))
    if smallest is not None and smallest is not best:
        opening = f"{smallest.label} is the smallest"
        sentences.append(" ".join([f"{opening}: {_cost(report, smallest, text)}.", *_more(smallest, text)]))
    return sentences + _dominated(ranked, text)


def _worse_than_guessing(report: Report, text: Text) -> list[str]:
    """The doubt about all figures if the reference's perplexity exceeds the size of its vocabulary."""
    reference = report.reference
    on = reference.on(text.name) if reference is not None else None
    if reference is None or reference.vocabulary is None or on is None or on.perplexity is None:
        return []
    if on.perplexity.value <= reference.vocabulary:
        return []
    return [
        f"The reference's perplexity on {text.name} is above its vocabulary of {reference.vocabulary:,} tokens, so it"
        " predicts worse than equal probabilities: its weights are damaged, or it does not know the text's language."
        " The comparison below is of little use."
    ]


def _other_rank(ranked: list[Model], text: Text) -> list[str]:
    """The candidate that perplexity ranks first, if KL divergence ranks another one first."""
    rated = [(model, on.ratio) for model in ranked if (on := model.on(text.name)) is not None and on.ratio is not None]
    if len(rated) < 2:
        return []
    closest, ratio = min(rated, key=lambda pair: abs(pair[1].value - 1))
    best, on = ranked[0], ranked[0].on(text.name)
    if closest is best or on is None or on.kl is None or on.ratio is None:
        return []
    return [
        f"The two measures rank differently: {best.label} has the smallest KL divergence, {closest.label} the smallest"
        f" change of perplexity ({change(ratio)})."
    ]


def _cost(report: Report, model: Model, text: Text) -> str:
    """ "46% smaller, perplexity +0.070% ± 0.046%" """
    reference, on = report.reference, model.on(text.name)
    how_small = smaller(model.bytes, reference.bytes if reference else None)
    parts = [how_small] if how_small else []
    where = f" on {text.name}" if len(report.texts) > 1 else ""
    if on is not None and on.ratio is not None:
        parts.append(f"perplexity {change(on.ratio)}{where}")
    elif on is not None and on.kl is not None:
        parts.append(f"KL divergence {plus_minus(on.kl.mean)} nats a token{where}")
    return ", ".join(parts)


def _more(model: Model, text: Text) -> list[str]:
    """Sentences on significance, the same top token and the other texts."""
    on = model.on(text.name)
    sentences = []
    if on is not None and on.ratio is not None and abs(on.ratio.value - 1) <= 2 * (on.ratio.error or 0.0):
        sentences.append(
            "The change of perplexity is within two standard errors; only a longer text can tell it from none."
        )
    if on is not None and on.top1 is not None:
        sentences.append(f"The most likely token is the reference's {percent(on.top1)} of the time.")
    others = [on for on in model.quality if on.text != text.name and on.ratio is not None]
    changes = [f"{change(on.ratio)} on {on.text}" for on in others]
    if changes:
        sentences.append(f"Perplexity changes by {listed(changes)}.")
    return sentences


def _size(model: Model) -> float:
    return model.bytes or math.inf


def _dominated(ranked: list[Model], text: Text) -> list[str]:
    """Candidates for which a clearly better one is not larger."""
    sentences = []
    for rank, model in enumerate(ranked):
        for better in ranked[:rank]:
            no_larger = better.bytes and model.bytes and better.bytes <= model.bytes
            if no_larger and _clearly(better.on(text.name), model.on(text.name)):
                sentences.append(f"{better.label} is better than {model.label}: not larger, closer to the reference.")
                break
    return sentences


def _clearly(better: Quality | None, worse: Quality | None) -> bool:
    """Whether their losses differ by more than two combined standard errors."""
    errors = [
        (on.kl.mean if on.kl is not None and on.kl.mean is not None else on.ratio) if on is not None else None
        for on in (better, worse)
    ]
    apart = (_loss(worse) or 0.0) - (_loss(better) or 0.0)
    return apart > 2 * math.hypot(*(error.error or 0.0 for error in errors if error is not None))


def _loss(on: Quality | None) -> float | None:
    """The rank of a candidate: its mean KL divergence, or the change of perplexity if there is none."""
    if on is None:
        return None
    if on.kl is not None and on.kl.mean is not None:
        return on.kl.mean.value
    return None if on.ratio is None else abs(on.ratio.value - 1)


def _within(on: Quality | None) -> bool:
    return on is not None and on.ratio is not None and abs(on.ratio.value - 1) <= CLOSE
