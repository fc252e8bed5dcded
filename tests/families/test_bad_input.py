"""Bad input of every family is refused by config.json and the tensors' names alone, in one sentence.

Each family has the first of its cases: impossible sizes, an unknown rope type, an expert that is missing, and a layer
for a later token without one of its norms.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import pytest

from quantkit.errors import CheckpointError, QuantkitError, UnsupportedError
from quantkit.families import find_family, map_tensors
from tests.families.expected import expected
from tests.families.models import all_cases
from tests.families.test_large_shapes import source

SIZES = (
    *("hidden_size", "n_embd", "dim", "num_attention_heads", "n_head", "n_heads", "num_hidden_layers", "n_layer"),
    *("n_layers", "num_layers", "vocab_size", "intermediate_size", "moe_intermediate_size", "q_lora_rank"),
    *("kv_lora_rank", "num_key_value_heads", "num_experts", "num_local_experts", "n_routed_experts"),
)
"""Names that families have for a count; 0 experts means a model without them."""
NOT_A_SIZE = (0, -1, 1 << 40, "64", 1.5)
MULTI_QUERY = {"gpt-bigcode": ("num_key_value_heads",)}
"""Keys of a config that its class does not read: the number of heads follows from multi_query."""


def first_cases() -> Iterator[str]:
    """The first case of each family."""
    families = set()
    for name in sorted(all_cases()):
        family = find_family(expected(name).config).name
        if family not in families:
            families.add(family)
            yield name


CASES = tuple(first_cases())


def text(config: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json that describes the text model."""
    nested = (config.get(key) for key in ("text_config", "llm_config", "language_config"))
    thinker = config.get("thinker_config", {}).get("text_config")
    return next((part for part in (*nested, thinker) if isinstance(part, dict)), config)


def refusal(config: Mapping[str, Any]) -> str | None:
    """The sentence that refuses a config; None if it passes."""
    try:
        family = find_family(config)
        sizes = family.sizes(config)
        family.keys(family.gguf_arch, sizes)
    except QuantkitError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", CASES)
def test_a_count_that_is_not_one_is_refused(name: str) -> None:
    config = expected(name).config
    for key in SIZES:
        if not isinstance(text(config).get(key), int) or key in MULTI_QUERY.get(name, ()):
            continue
        for value in NOT_A_SIZE:
            if value == 0 and "expert" in key:
                continue
            changed = deepcopy(config)
            text(changed)[key] = value
            sentence = refusal(changed)
            assert sentence is not None, (key, value)
            assert "\n" not in sentence


def rope_records(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Every record of rotary positions of the text model, by kind of layer where it has several."""
    parts = [text(config).get(key) for key in ("rope_parameters", "rope_scaling")]
    records = [part for part in parts if isinstance(part, dict)]
    nested = [part for record in records for part in record.values() if isinstance(part, dict)]
    return nested or records


@pytest.mark.parametrize("name", CASES)
def test_an_unknown_rope_type_is_refused(name: str) -> None:
    config = deepcopy(expected(name).config)
    family = find_family(config)
    if family.traits.positions != "rope" or not family.traits.plannable or family.traits.encoder:
        pytest.skip("no rotary positions, or an encoder whose class reads no rope type")
    records = rope_records(config)
    if not records:
        text(config)["rope_scaling"] = {"factor": 2.0}
        records = [text(config)["rope_scaling"]]
    for record in records:
        record.pop("type", None)
        record |= {"rope_type": "spiral", "factor": 2.0}
    with pytest.raises((CheckpointError, UnsupportedError), match="spiral") as caught:
        family.sizes(config)
    assert "\n" not in str(caught.value)


def draft_norms(name: str) -> tuple[str, ...]:
    family = find_family(expected(name).config)
    return tuple(rule.source for rule in family.rules if rule.draft and rule.required and "norm" in rule.source)


def with_experts(name: str) -> bool:
    return any("{expert}" in rule.source for rule in find_family(expected(name).config).rules)


@pytest.mark.parametrize("name", [name for name in CASES if with_experts(name)])
def test_an_expert_that_is_missing_is_named(name: str) -> None:
    config = expected(name).config
    family = find_family(config)
    tensors = source(family, family.sizes(config), packed=False)
    experts = sorted(
        rule.source.format(layer=layer, draft=0, expert=1)
        for rule in family.rules
        if "{expert}" in rule.source and rule.required
        for layer in range(family.sizes(config).n_layer)
    )
    missing = next((expert for expert in experts if expert in tensors), None)
    if missing is None:
        pytest.skip("its experts are in one tensor")
    rest = {tensor: value for tensor, value in tensors.items() if tensor != missing}
    with pytest.raises(CheckpointError, match="is missing") as caught:
        map_tensors(family, family.sizes(config, rest), rest)
    assert missing in str(caught.value)


@pytest.mark.parametrize("name", [name for name in CASES if draft_norms(name)])
def test_a_later_tokens_layer_without_a_norm_is_refused(name: str) -> None:
    config = expected(name).config
    family = find_family(config)
    sizes = family.sizes(config)
    if not sizes.n_draft:
        pytest.skip("the case has no layer for a later token")
    tensors = source(family, sizes, packed=False)
    for norm in draft_norms(name):
        missing = norm.format(layer=sizes.n_layer, draft=0)
        rest = {tensor: value for tensor, value in tensors.items() if tensor != missing}
        assert len(rest) == len(tensors) - 1, missing
        with pytest.raises(CheckpointError, match="is missing") as caught:
            map_tensors(family, family.sizes(config, rest), rest)
        assert missing in str(caught.value)
