"""Every setting of a tower's config class changes the projector's GGUF, is refused, or is known as idle.

The settings are transformers 5's own (tower_settings.py). Each is changed in turn.
"""

import json
from typing import Any

import numpy as np
import pytest

from quantkit.errors import QuantkitError
from quantkit.families import find_family
from quantkit.families.base.projector import Projector, Sources
from quantkit.families.base.settings import NO_EFFECT
from quantkit.outputs.projector import find_projector
from tests.families.test_settings import other_values
from tests.vision.cases import case_of
from tests.vision.tower_settings import GOLDEN

Config = dict[str, Any]
SETTINGS: dict[str, dict[str, Config]] = json.loads(GOLDEN.read_text())
# decided by the tensors: a shape, or a tensor that is there or is not
TENSORS = {
    *("in_channels", "num_channels", "num_key_value_heads", "out_hidden_size", "standardize", "use_clipped_linears"),
    *("use_absolute_position_embeddings", "use_mean_pooling", "use_qk_norm", "vision_use_head"),
}
# training, or starting values
TRAINING = {
    *("activation_dropout", "encoder_layerdrop", "layerdrop", "layer_scale_init_value", "projection_dropout"),
    "use_mask_token",
}
# no code of the class reads it, or only that of videos
UNREAD = {"max_position_embeddings", "tokens_per_second", "vocab_size"}


def outcome(name: str, section: str, tower: Config) -> object:
    """All that the projector's GGUF of a case depends on, or the refusal."""
    case = case_of(name)
    config = {**case.config, section: tower}
    processor: Config = {}
    for settings in case.processors.values():
        processor |= {**settings, **(settings.get("image_processor") or {})}
    family = find_family(config)
    try:
        projector = find_projector(config)
        assert isinstance(projector, Projector)
        sizes = projector.tower(Sources(config, processor, family.sizes(config), lambda text: 12))
        keys = [(key.name, key.kind, repr(key.value)) for key in projector.all_keys(sizes)]
        rules = [
            (
                rule.source,
                rule.target,
                [projector.dimension(sizes, dimension) for dimension in rule.shape],
                list(rule.layers(sizes)) if rule.layers else sizes.n_layer,
                [np.asarray(factor).tobytes() for factor in rule.factors(sizes)] if rule.factors else [],
            )
            for rule in (*projector.rules, *projector.computed_rules(sizes))
            if rule.when is None or rule.when(sizes)
        ]
        return keys, rules, dict(projector.fixed_types(sizes))
    except QuantkitError as error:
        return str(error)


@pytest.mark.parametrize(
    ("name", "section"), [(name, section) for name, sections in SETTINGS.items() for section in sections]
)
def test_every_setting_of_a_tower_counts_or_is_known_to_be_idle(name: str, section: str) -> None:
    tower = SETTINGS[name][section]
    plain = outcome(name, section, tower)
    assert not isinstance(plain, str), plain
    idle = {
        key
        for key, value in tower.items()
        if key not in NO_EFFECT | TENSORS | TRAINING | UNREAD
        and all(outcome(name, section, {**tower, key: new}) == plain for new in other_values(value))
    }
    assert not idle


@pytest.mark.parametrize(
    ("name", "section", "settings", "sentence"),
    [
        (
            "qwen2-vl",
            "vision_config",
            {"hidden_act": "silu"},
            "hidden_act is 'silu', but llama.cpp runs Qwen2-VL's tower",
        ),
        ("qwen2.5-vl", "vision_config", {"hidden_act": "gelu"}, "llama.cpp runs Qwen2.5-VL's tower only with silu"),
        (
            "pixtral",
            "vision_config",
            {"rope_theta": 5000.0},
            "rope_theta is 5000.0, but llama.cpp runs Pixtral's tower",
        ),
        ("gemma4", "vision_config", {"rope_parameters": {"rope_theta": 10000.0}}, "Gemma 4's tower only with 100.0"),
        ("gemma4-hears", "audio_config", {"attention_logit_cap": 30.0}, "Gemma 4's audio tower only with 50.0"),
        ("internvl", "vision_config", {"norm_type": "rms_norm"}, "only with layer_norm"),
    ],
)
def test_a_setting_that_llama_cpp_has_built_in_otherwise_is_refused(
    name: str, section: str, settings: Config, sentence: str
) -> None:
    message = outcome(name, section, {**SETTINGS[name][section], **settings})
    assert isinstance(message, str) and sentence in message
