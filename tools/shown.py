"""What the tests show of each family, for docs/reference/families.md: from the tests' own lists of models."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from quantkit.families import Family, all_families, find_family
from quantkit.families.wrappers import WRAPPERS
from tests.conversion import test_published_mix, test_published_mix_classic, test_published_mix_delta
from tests.families.expected import GOLDEN
from tests.families.models import all_cases
from tests.families.other_names import REFUSED
from tests.families.test_class_defaults import CONFIGS, published
from tests.families.test_large_shapes import MODELS
from tests.families.without_class import WITHOUT_CLASS

REGISTERED = Path(__file__).resolve().parents[1] / "tests" / "families" / "registered.txt"
"""The text architectures that llama.cpp's converter names (b11549, conversion/__init__.py)."""

_HEAD = """
## What is shown

llama.cpp's converter (b11549) names {registered} text architectures; {known} of them have a family or a wrapper above.
Any other one is converted with llama.cpp's converter, without calibration by quantkit
([any model](../guides/any-model.md)). These wait for [a family](../dev/add-a-family.md):

{free}

Refused, because llama.cpp's graph is another one: {refused}.

The tests compare tiny models of each family, with random weights:

- bytes: every key and every tensor of the GGUF equals the converter's. "no": the converter is wrong about the tiny
  models, or fails, and the logits alone decide (`converter=False` in tests/families/models gives the reason).
- logits: llama.cpp's logits of the GGUF are within 2 % (of their standard deviation) of those of transformers' class,
  or, where it has none, of a class that the test changes into the published code. The best tokens are the same.
- forward: quantkit's own layers, which `imatrix`, `awq`, `gptq` and the checks run, give the same logits.
- plan: the planned buffers are those that llama.cpp allocates.
- mix: at a published size, the types of all tensors are those of `llama_model_quantize` (q4_0, q4_k_m, q2_k, iq4_xs).

| family | bytes | logits | forward | plan | mix |
|---|---|---|---|---|---|
"""


def shown() -> str:
    """The section with the count and the table."""
    names = set(REGISTERED.read_text("utf-8").split())
    known = {name for family in all_families() for name in family.architectures}
    known |= {wrapper.architecture for wrapper in WRAPPERS}
    known -= set(REFUSED)
    rows = [_row(family) for family in sorted(all_families(), key=lambda family: family.name.lower())]
    notes = [f"- {family.name}: {family.graph_differs}." for family in all_families() if family.graph_differs]
    free = ", ".join(f"`{name}`" for name in sorted(sorted(names - known - set(REFUSED)), key=str.lower)) + "."
    refused = "; ".join(f"`{name}` {why}" for name, why in REFUSED.items())
    text = (
        _HEAD.format(registered=len(names), known=len(names & known), free=free, refused=refused)
        + "\n".join(rows)
        + "\n"
    )
    return text + ("\nThe logits of these differ:\n\n" + "\n".join(notes) + "\n" if notes else "")


def _row(family: Family) -> str:
    cases = [case for name, (_, case) in all_cases().items() if _families_of_cases()[name] == family.name]
    marks = (
        any(case.converter for case in cases),
        any(not case.graph_differs for case in cases),
        any(case.forward for case in cases),
        family.traits.plannable,
        family.name in mixed(),
    )
    return f"| {family.name} | " + " | ".join("yes" if mark else "no" for mark in marks) + " |"


@cache
def _families_of_cases() -> dict[str, str]:
    """Case -> the name of its family."""
    stored = {group: json.loads((GOLDEN / f"{group}.json").read_text("utf-8")) for group, _ in all_cases().values()}
    return {name: find_family(stored[group][name]["config"]).name for name, (group, _) in all_cases().items()}


def mixed() -> frozenset[str]:
    """The families whose mix of types is compared at a published size."""
    return frozenset(find_family(config).name for config in mixed_configs())


@cache
def mixed_configs() -> tuple[Mapping[str, Any], ...]:
    """config.json of every model whose mix of types is compared at its size."""
    configs = [*map(published, CONFIGS), *WITHOUT_CLASS.values(), *(config for config, _, _ in MODELS.values())]
    for module in (test_published_mix, test_published_mix_classic, test_published_mix_delta):
        configs += [dict(model.config) for model in module.SHAPES]
    return tuple(configs)
