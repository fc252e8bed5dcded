"""Every setting of every transformers config class changes the GGUF, is refused or warned about, or is known as idle.

The settings are transformers 5's own (class_defaults.py). Each is changed in turn, the parameters of rope too.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest

from quantkit.errors import QuantkitError
from quantkit.families import Hyperparameters, Rule, all_families, cautions, find_family
from quantkit.families.base.settings import NO_EFFECT
from tests.families.test_class_defaults import CONFIGS, published

Config = dict[str, Any]
ROPE = "rope_parameters"
# transformers' ROPE_INIT_FUNCTIONS, with the parameters that each needs
ROPE_KINDS: dict[str, Config] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 512},
    "longrope": {"short_factor": [1.5], "long_factor": [2.5], "original_max_position_embeddings": 512},
    "llama3": {
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "proportional": {"factor": 2.0},
}
# parameters that a scaling may have too; the last two count together
ROPE_MORE: dict[str, list[Config]] = {
    "yarn": [
        {"attention_factor": 0.7},
        {"beta_fast": 20.0},
        {"beta_slow": 2.0},
        {"truncate": False},
        {"mscale": 0.5, "mscale_all_dim": 0.25},
    ]
}
# neither transformers nor llama.cpp scale cos and sin of these, whatever it says
IGNORES_MSCALE = ("DeepseekV4ForCausalLM",)
SLIDING = {"use_sliding_window": True, "sliding_window": 16, "layer_types": None}
SLIDING_BY_LAYER = [
    {**SLIDING, "layer_types": ["sliding_attention"] * 32, "num_hidden_layers": 32},
    {**SLIDING, "max_window_layers": 4},
]
# Settings under which others count.
GEMMA4_EXPERTS: Config = {
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 64,
}
ALSO: dict[str, list[Config]] = {
    "Cohere2MoeForCausalLM": [
        {"layer_types": None, "mlp_layer_types": None, "first_k_dense_replace": 2},
        {"num_shared_experts": 1},
    ],
    "DeepseekV4ForCausalLM": [{"rope_parameters": None}],
    "Exaone4ForCausalLM": [{"layer_types": None}],
    "Exaone4_5_ForConditionalGeneration": [{"layer_types": None}],
    "ExaoneMoeForCausalLM": [{"layer_types": None}],
    "FalconH1ForCausalLM": [{"mamba_d_ssm": None, "hidden_size": 2048}, {"mamba_rms_norm": True}],
    "Gemma3ForCausalLM": [{"layer_types": None}],
    "Gemma3ForConditionalGeneration": [{"layer_types": None}],
    "Gemma4ForCausalLM": [GEMMA4_EXPERTS],
    "Gemma4ForConditionalGeneration": [GEMMA4_EXPERTS],
    "Qwen2ForCausalLM": SLIDING_BY_LAYER,
    "LagunaForCausalLM": [
        {"layer_types": [("full" if layer % 4 == 0 else "sliding") + "_attention" for layer in range(40)]}
    ],
    "Lfm2ForCausalLM": [{"layer_types": None}],
    "Lfm2Model": [{"layer_types": None}],
    "Qwen2Model": SLIDING_BY_LAYER,
    "Qwen2MoeForCausalLM": [SLIDING],
    "Qwen2VLForConditionalGeneration": SLIDING_BY_LAYER,
    "Qwen2VLModel": SLIDING_BY_LAYER,
    "Qwen2_5_VLForConditionalGeneration": SLIDING_BY_LAYER,
    "Qwen3ASRForConditionalGeneration": SLIDING_BY_LAYER,
    "Qwen3ForCausalLM": SLIDING_BY_LAYER,
    "Qwen3Model": SLIDING_BY_LAYER,
    "Qwen3MoeForCausalLM": [SLIDING],
    "SmolLM3ForCausalLM": [SLIDING],
}


def outcome(config: Config) -> object:
    """All that the GGUF of a config depends on, or the refusal."""
    family = find_family(config)
    try:
        sizes = family.sizes(config)
        known: dict[tuple[str, int | None], int] = {}

        def dimension(name: str, layer: int | None) -> int:
            at = name, layer if family.layer_dimensions else None
            if at not in known:
                known[at] = family.dimension(sizes, name, layer)
            return known[at]

        keys = [(key.name, key.kind, repr(key.value)) for key in family.keys(family.gguf_arch, sizes)]
        rules = [
            (
                rule.source,
                rule.target,
                [tuple(dimension(name, layer) for name in rule.shape) for layer in layers_of(rule, sizes)],
                list(rule.layers(sizes)) if rule.layers else sizes.n_layer,
                [np.asarray(factor).tobytes() for factor in rule.factors(sizes)] if rule.factors else [],
            )
            for rule in family.rules
            if rule.when is None or rule.when(sizes)
        ]
        computed = [(extra.target, extra.values(sizes)) for extra in family.computed]
        tables = [(name, None if values is None else values.tobytes()) for name, values in computed]
        return keys, rules, tables, list(cautions(family, sizes))
    except QuantkitError as error:
        return str(error)


def layers_of(rule: Rule, sizes: Hyperparameters) -> Iterable[int | None]:
    if "{layer}" not in rule.target:
        return (None,)
    return rule.layers(sizes) if rule.layers else range(sizes.n_layer)


def text_settings(config: Config) -> Config:
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def changed(config: Config, **settings: Any) -> Config:
    """The config with other settings of its text model."""
    if isinstance(config.get("text_config"), dict):
        return {**config, "text_config": {**config["text_config"], **settings}}
    return {**config, **settings}


def other_values(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2, max(value // 2, 1), 0, 1000]
    if isinstance(value, float):
        return [value * 2 + 0.125, 0.25]
    if isinstance(value, str):
        return ["another", "gelu", "silu"]
    if isinstance(value, list):
        return [[*value[:-1], "sliding_attention"], ["full_attention", *value[1:]], [], [0, 2]]
    if isinstance(value, Mapping):
        entries = [{**value, key: new} for key, entry in value.items() for new in other_values(entry)[:1]]
        return [{"rope_type": "yarn", "factor": 3.0, "rope_theta": 777.0}, *entries]
    return [7, 0.37, True, False, "another", [1]]


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_every_setting_counts_or_is_known_to_be_idle(architecture: str) -> None:
    family, config = find_family({"architectures": [architecture]}), published(architecture)
    bases = [config, *(changed(config, **also) for also in ALSO.get(architecture, []))]
    outcomes = [outcome(base) for base in bases]
    assert not isinstance(outcomes[0], str), outcomes[0]
    known = NO_EFFECT | set(family.no_effect)
    idle = [
        key
        for key in text_settings(config)
        if key not in known
        and all(
            outcome(changed(base, **{key: new})) == was
            for base, was in zip(bases, outcomes, strict=True)
            for new in other_values(text_settings(base)[key])
        )
    ]
    assert not idle
    if "text_config" in config:
        assert not set(config) - {"text_config"} - known


@pytest.mark.parametrize("kind", sorted(ROPE_KINDS))
@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_every_rope_scaling_and_each_of_its_parameters_counts_or_is_refused(architecture: str, kind: str) -> None:
    config = published(architecture)
    plain = text_settings(config).get(ROPE)
    if plain is None:
        pytest.skip("its class has no rope")
    # the entry of layers whose rope is scaled, where layers differ
    of_layers = next((entry for entry in ("full_attention", "compress") if isinstance(plain.get(entry), Mapping)), None)
    flat = plain[of_layers] if of_layers else plain
    half = int(text_settings(config).get("head_dim") or 64) // 2

    def scaled(**more: Any) -> object:
        rope = {**flat, "rope_type": kind, **ROPE_KINDS[kind], **more}
        rope |= {key: value * half for key, value in rope.items() if key in ("short_factor", "long_factor")}
        return outcome(changed(config, **{ROPE: {**plain, of_layers: rope} if of_layers else rope}))

    was = scaled()
    assert was != outcome(config), "the scaling is dropped"
    if isinstance(was, str):
        return
    ignored = {"mscale"} if architecture in IGNORES_MSCALE else set()
    more = [change for change in ROPE_MORE.get(kind, []) if not ignored & set(change)]
    more = [change for change in more if any(flat.get(key) != new for key, new in change.items())]
    changes = [{key: [9.5] if isinstance(value, list) else value * 2} for key, value in ROPE_KINDS[kind].items()] + more
    assert not [change for change in changes if scaled(**change) == was]


def test_no_family_lists_a_setting_that_its_classes_lack_or_that_all_classes_have() -> None:
    for family in all_families():
        configs = [published(name) for name in family.architectures if name in CONFIGS]
        settings = {key for config in configs for key in (*config, *text_settings(config))}
        # no class is known of remote code, or of a family that is not in class_defaults.json yet
        assert not configs or not set(family.no_effect) - settings, family.name
        assert not set(family.no_effect) & NO_EFFECT, family.name
