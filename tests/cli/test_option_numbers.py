"""A number of an option that is none, or is out of range: one sentence with the option, the value and the range."""

import math
from typing import Any

import pytest

from quantkit.cli import COMMANDS, load_command
from tests.helpers.command import quantkit

RANGED = [
    (name, option)
    for name in COMMANDS
    for option in load_command(name).params
    if getattr(option, "min", None) is not None or getattr(option, "max", None) is not None
]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("gguf", "x", "--samples", "0"), "--samples '0' is not a whole number of at least 1"),
        (("gguf", "x", "--samples", "1.5"), "--samples '1.5' is not a whole number of at least 1"),
        (("serve", "x", "--port", "65536"), "--port '65536' is not a whole number from 1 to 65535"),
        (("serve", "x", "--parallel", " "), "--parallel ' ' is not a whole number from 1 to 256"),
        (("plan", "x", "--ctx", "99999999"), "--ctx '99999999' is not a whole number from 1 to 16777216"),
        (("run", "x", "-n", "many"), "--max-tokens 'many' is not a whole number of at least 1"),
        (("run", "x", "--temperature", "-1"), "--temperature '-1' is not a number of at least 0"),
        (("gptq", "x", "--damp", "nan"), "--damp 'nan' is not a number from 0 to 1"),
        (("gguf", "x", "--target-bpw", "small"), "--target-bpw 'small' is not a number"),
        (("convert", "x", "--adapter-scale", "1,5"), "--adapter-scale '1,5' is not a number"),
    ],
)
def test_the_sentence_has_the_option_the_value_and_the_range(words: tuple[str, ...], sentence: str) -> None:
    answer = quantkit(*words)
    assert (answer.code, answer.sentence) == (2, f"quantkit: {sentence}")


@pytest.mark.parametrize(("command", "option"), RANGED, ids=[f"{name} {option.name}" for name, option in RANGED])
def test_every_option_with_a_range_has_such_a_sentence(command: str, option: Any) -> None:
    name, least, most = max(option.opts, key=len), option.min, option.max
    outside = math.floor(least) - 1 if least is not None else math.ceil(most) + 1
    answer = quantkit(command, name, str(outside))
    assert f"{name} '{outside}' is not a " in answer.sentence
    assert all(f"{bound:.0f}" in answer.sentence for bound in (least, most) if bound is not None)
