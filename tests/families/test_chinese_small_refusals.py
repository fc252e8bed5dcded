"""Settings of Baichuan, InternLM, StableLM, GLM-4, SmolLM3 and Phi-3 that llama.cpp would run as another model."""

import pytest

from quantkit.errors import UnsupportedError
from quantkit.families import find_family
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
