"""Settings of Baichuan, InternLM, StableLM, GLM-4, SmolLM3 and Phi-3 that llama.cpp would run as another model."""

from typing import Any

import pytest

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import Key, find_family
from tests.families.expected import expected


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("baichuan", {"num_hidden_layers": 24}, "24 layers with rotary positions"),
        ("baichuan", {"num_hidden_layers": 40}, "40 layers with rotary positions"),
        ("baichuan", {"max_position_embeddings": None}, "32 layers with ALiBi.*40 with ALiBi"),
        ("baichuan-13b", {"num_hidden_layers": 48}, "48 layers with ALiBi"),
        ("baichuan2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("baichuan2", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling 'linear'"),
        ("internlm2", {"bias": True}, "bias is true"),
        ("internlm2", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope scaling 'yarn'"),
        ("internlm3", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("internlm", {"rotary": {"base": 10000, "type": "linear"}}, "rotary type 'linear'"),
        ("stablelm-3b", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("stablelm-3b", {"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ("stablelm-3b", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling 'yarn'"),
        ("stablelm2-1.6b", {"rotary_scaling_factor": 2.0}, "rotary_scaling_factor is 2.0"),
        ("glm4", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("glm4-yarn", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16}}, "beta_fast is 16"),
        ("glm4", {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "rope scaling 'llama3'"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 1]}, "only with every fourth layer without positions"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 3}, r"no_rope_layers is \[1, 1, 0, 1, 1\]"),
        ("smollm3", {"attention_bias": True}, "attention_bias is true"),
        ("smollm3", {"mlp_bias": True}, "mlp_bias is true"),
        (
            "smollm3",
            {"use_sliding_window": True, "sliding_window": 128, "layer_types": None},
            "window of 128 tokens.*full attention only",
        ),
        ("phi-4k", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("phi-4k", {"head_dim": 32}, "head_dim is 32.*only with 16"),
        ("phi-4k", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling 'linear'"),
    ],
)
def test_what_llama_cpp_would_run_wrong_is_refused(name: str, change: dict[str, object], words: str) -> None:
    config = expected(name).config
    family = find_family(config)
    family.keys(family.gguf_arch, family.sizes(config))
    with pytest.raises(UnsupportedError, match=words):
        family.keys(family.gguf_arch, family.sizes({**config, **change}))


def test_an_extended_baichuan2_keeps_its_normalised_head_and_baichuan_1_its_plain_one() -> None:
    def head(name: str, **change: object) -> list[bool]:
        config = {**expected(name).config, **change}
        sizes = find_family(config).sizes(config)
        heads = [rule for rule in find_family(config).rules if rule.target == "output.weight"]
        return [rule.adjust is not None for rule in heads if rule.when is None or rule.when(sizes)]

    assert head("baichuan2", vocab_size=125800) == [True]
    assert head("baichuan", vocab_size=64000) == [False]
    # the 13B's published config.json says no more of its generation than this
    assert head("baichuan-13b", vocab_size=125696) == [True]


def test_a_window_that_changes_nothing_is_no_reason_to_refuse() -> None:
    config = expected("smollm3").config | {"sliding_window": 128}
    family = find_family(config)
    full = ["full_attention"] * config["num_hidden_layers"]
    assert family.sizes({**config, "use_sliding_window": True, "layer_types": full}).n_layer == 5
    assert family.sizes({**config, "use_sliding_window": True, "layer_types": None, "sliding_window": 512}).n_layer == 5


def test_phi_3_is_converted_with_a_word_about_its_window() -> None:
    def cautions(**change: object) -> list[str]:
        config = {**expected("phi-4k").config, **change}
        return list(find_family(config).cautions(find_family(config).sizes(config)))

    assert len(cautions(sliding_window=100)) == 1
    assert "its last 100 tokens" in cautions(sliding_window=100)[0]
    assert cautions(sliding_window=512) == cautions(sliding_window=None) == []


@pytest.mark.parametrize("factor", [[1.0] * 7, "all", [1.0] * 7 + ["2"], None])
def test_a_table_of_rotary_factors_must_fit_the_head(factor: object) -> None:
    config = expected("phi-128k-long").config
    family = find_family(config)
    sizes = family.sizes({**config, "rope_scaling": {**config["rope_scaling"], "long_factor": factor}})
    with pytest.raises(CheckpointError, match="long_factor must be a list of 8 numbers"):
        [value.values(sizes) for value in family.computed]


def test_the_first_releases_of_phi_3_called_longrope_su_or_yarn() -> None:
    config = expected("phi-128k-long").config
    family = find_family(config)
    for kind in ("su", "yarn"):
        older = family.sizes({**config, "rope_scaling": {**config["rope_scaling"], "type": kind}})
        assert family.keys("phi3", older) == family.keys("phi3", family.sizes(config))


def test_sizes_that_cannot_be_true_are_told_in_words() -> None:
    phi, stable = expected("phi-128k-long").config, expected("stablelm-3b").config
    with pytest.raises(CheckpointError, match="original_max_position_embeddings is 1"):
        keys({**phi, "original_max_position_embeddings": 1})
    with pytest.raises(CheckpointError, match="partial_rotary_factor must be a positive number"):
        keys({**stable, "partial_rotary_factor": -0.5})
    # a config without a model_type gets no defaults
    assert keys({key: value for key, value in stable.items() if key != "model_type"}) == keys(stable)


def keys(config: dict[str, Any]) -> list[Key]:
    family = find_family(config)
    return family.keys(family.gguf_arch, family.sizes(config))
