"""Sentences about tensors of a checkpoint that do not fit a family's rules: missing ones and unknown ones."""

import difflib
import re
from collections.abc import Iterable, Sequence

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Rule
from quantkit.families.base.hyperparameters import Hyperparameters

# Placeholders of a source name, all with the number that `_at_zero` puts into a tensor's name.
_FIRST = dict.fromkeys(("layer", "draft", "expert", "head", "kv_head", "stream"), 0)
# Letters that a name without a layer must share with the one in whose place it stands.
_ALIKE = 0.5


def known_names(rules: Iterable[Rule]) -> set[str]:
    """The names of the rules' sources, scales and factors, at layer and expert 0."""
    templates = ((rule, template) for rule in rules for template in (rule.source, rule.scales, rule.times) if template)
    return {template.format(**_FIRST, part=part) for rule, template in templates for part in rule.parts or ("",)}


def is_known(name: str, known: set[str]) -> bool:
    """Whether a name is one of `known_names` at any layer and expert."""
    return _at_zero(name) in known


def missing_tensor(name: str, sizes: Hyperparameters, unknown: Sequence[str], *, head: bool = False) -> CheckpointError:
    """The error for the missing tensor `name`: names of another tool, or an incomplete checkpoint.

    Args:
        unknown: the checkpoint's tensors that no rule has.
        head: `name` is an output head, which a model with a tied embedding does not need.
    """
    other = _in_place_of(name, unknown)
    if other is not None:
        return CheckpointError(
            f"tensor {name} is missing from the checkpoint, which has tensors like {other} instead, as another"
            " tool names them; take the original checkpoint, or a folder that has its names"
        )
    experts = f" of {sizes.n_expert} experts" if sizes.n_expert else ""
    separate = " and a separate output head (tie_word_embeddings is false)" if head else ""
    described = f"config.json describes {sizes.n_layer} layers{experts}{separate}"
    return CheckpointError(
        f"tensor {name} is missing from the checkpoint, but {described}; download the checkpoint again"
    )


def unknown_tensors(
    unknown: Sequence[str], rules: Iterable[Rule], n_layer: int, whole: str
) -> CheckpointError | UnsupportedError:
    """The error for tensors that no rule has used. `whole`: what the rules describe."""
    beyond = [
        name for name in unknown if any(int(n) >= n_layer for n in re.findall(r"(?:layers?|blocks|h)\.(\d+)\.", name))
    ]
    if beyond:
        return CheckpointError(
            f"tensor {beyond[0]} is beyond the {n_layer} layers of config.json; use the config.json that belongs to"
            " these weights"
        )
    known = [rule.source.format(**_FIRST, part=(*rule.parts, "")[0]) for rule in rules]
    close = difflib.get_close_matches(_at_zero(unknown[0]), known, n=1)
    more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    hint = f"; the nearest known name is {close[0]}" if close else ""
    return UnsupportedError(f"tensor {unknown[0]}{more} is not part of {whole}{hint}")


def _in_place_of(name: str, unknown: Iterable[str]) -> str | None:
    """The name nearest to `name` in the same layer: by its last components, then by its letters."""
    layer = _layer(name)
    if layer is not None:
        return max(
            (other for other in unknown if _layer(other) == layer),
            key=lambda other: _nearness(name, other),
            default=None,
        )
    close = difflib.get_close_matches(name, [other for other in unknown if _layer(other) is None], 1, _ALIKE)
    return close[0] if close else None


def _nearness(name: str, other: str) -> tuple[int, float]:
    same = 0
    for a, b in zip(reversed(name.split(".")), reversed(other.split(".")), strict=False):
        if a != b:
            break
        same += 1
    return same, difflib.SequenceMatcher(None, name, other).ratio()


def _layer(name: str) -> str | None:
    """The first number among the components."""
    return next((part for part in name.split(".") if part.isdigit()), None)


def _at_zero(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".0", name)
