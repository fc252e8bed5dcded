"""Words that are wrong usage: a value that an option does not take, a type or a command that does not exist."""

import re
from pathlib import Path

import pytest

from quantkit.cli import COMMANDS, load_command
from quantkit.packed.registry import FORMATS
from tests.helpers.command import assert_nothing_final, quantkit, quantkit_here, quantkit_process
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("sound") / "model", variant="llama3", shards=2)


NO_ADDRESSES = (
    "nowhere",
    "ftp://x",
    "https://",
    "http://[::1",
    "http://x:99999",
    "http://x:y",
    "http://a b",
    "http:///x",
)


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (("plan", "me/model"), "http://[::1"),
        (("lora", "me/adapter", "--base", "."), "http://x:99999"),
        (("imatrix", "MODEL", "--calibration", "me/texts"), "http://a b"),
    ],
)
def test_an_endpoint_that_is_not_an_address_is_named(words: tuple[str, ...], address: str, sound: Path) -> None:
    # a process of its own: the hub's client reads HF_ENDPOINT when it is imported
    words = tuple(str(sound) if word == "MODEL" else word for word in words)
    answer = quantkit_process(*words, env={"HF_ENDPOINT": address})
    assert answer.code == 2 and f"HF_ENDPOINT {address!r} is not a web address" in answer.sentence, answer


def test_wrong_words_are_wrong_usage(sound: Path, tmp_path: Path) -> None:
    for words, expected in (
        (("-t", "q4_9"), "q4_0"),
        (("--tensor-type", "ffn_down"), "REGEX=TYPE"),
        (("--tensor-type", "ffn_down=q9"), "q9"),
        (("--split-max-size", "much"), "500M"),
        (("--split-max-size", "1k"), "tensor"),
        (("--max-ram", "1M"), "--max-ram"),
        (("--pre", "no-such"), "no-such"),
        (("--name", "../elsewhere"), "--name"),
        (("--name", "."), "--name '.' is not a plain name"),
        *((("--mirror", address), f"--mirror {address!r} is not a web address") for address in NO_ADDRESSES),
    ):
        answer = quantkit("gguf", sound, "-o", tmp_path / "out", *words)
        assert answer.code == 2, (words, answer.stderr)
        assert expected in answer.sentence
    assert_nothing_final(tmp_path)
    choice = quantkit("gguf", sound, "--mtp", "none")
    assert choice.code == 2 and "Invalid value for '--mtp': 'none' is not one of 'keep'" in choice.stderr
    assert quantkit("gguf").code == 2
    assert quantkit("nonsense").code == 2


def test_a_type_asked_for_a_tensor_that_is_not_there_is_told(sound: Path, tmp_path: Path) -> None:
    words = ("gguf", sound, "-t", "q4_0", "-o", tmp_path, "--dry-run")
    answer = quantkit(*words, "--tensor-type", "ffn_dwon=q8_0", "--tensor-type", "attn_v=q8_0")
    assert answer.code == 0
    assert "ffn_dwon" in answer.stderr and "attn_v=" not in answer.stderr
    # norms are never quantized, so asking for a type of theirs does nothing either
    assert "attn_norm" in quantkit(*words, "--tensor-type", "attn_norm=q8_0").stderr
    assert "--tensor-type" not in quantkit(*words, "--tensor-type", "attn_v=q8_0").stderr
    answer = quantkit(*words, "-t", "bf16", "--tensor-type", "attn_v=q8_0")
    assert "--tensor-type has no effect on BF16, as in llama.cpp" in answer.stderr


def test_a_type_that_needs_an_imatrix_says_so(sound: Path, tmp_path: Path) -> None:
    answer = quantkit("gguf", sound, "-t", "iq2_xxs", "-o", tmp_path)
    assert answer.code == 1
    assert "--imatrix" in answer.sentence
    assert "IQ2_XXS" in answer.sentence
    assert_nothing_final(tmp_path)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("gguf", "model", "-t", "AWQ"), "'AWQ' is not a GGUF type; write it with quantkit convert -t awq"),
        (("gguf", "model", "-t", "imatrix"), "'imatrix' is not a GGUF type; write it with quantkit convert -t imatrix"),
        (("convert", "model", "-t", "nf5"), "lists the types of GGUF; others are awq, gptq, w4a16"),
        (("ggfu", "model"), "No such command 'ggfu'; the nearest is gguf."),
        (("quantise", "model"), "No such command 'quantise'."),
        (("chat", "model.gguf"), "No such command 'chat'; the nearest is run."),
    ],
)
def test_a_mistyped_command_or_a_type_of_another_command_is_told_what_to_write(
    words: tuple[str, ...], reason: str
) -> None:
    answer = quantkit(*words)
    assert answer.code == 2
    assert reason in " ".join(answer.stderr.split())


def test_the_help_of_convert_names_every_folder() -> None:
    (option,) = (option for option in load_command("convert").params if "-t" in option.opts)
    assert set(FORMATS) <= set(re.findall(r"[\w-]+", getattr(option, "help", "")))


@pytest.mark.parametrize(
    "words",
    [("ollama", "m.gguf", "--name", "me/m", "--gpu-layers", "auto", "--vram"), ("termux", "--gguf", "m.gguf", "--ram")],
)
def test_a_memory_without_a_unit_is_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    answer = quantkit(*words, "8", cwd=tmp_path)
    assert answer.code == 2 and f"{words[-1]} '8' has no unit; write 8G for gigabytes" in answer.sentence, answer
    assert f"{words[-1]} must be greater than zero" in quantkit(*words, "0", cwd=tmp_path).sentence


WITH_A_VALUE = [
    (command, max(parameter.opts, key=len))
    for command in COMMANDS
    for parameter in load_command(command).params
    if parameter.param_type_name == "option" and not getattr(parameter, "is_flag", False)
]


def test_every_option_refuses_an_empty_value_unless_it_is_a_text() -> None:
    texts = [(command, option) for command, option in WITH_A_VALUE if option in ("--system", "--prompt")]
    assert texts == [("run", "--prompt"), ("run", "--system"), ("ollama", "--system"), ("termux", "--system")]
    for command, option in WITH_A_VALUE:
        if (command, option) not in texts:
            answer = quantkit_here(command, "x", f"{option}=")
            expected = f"quantkit: {option} is empty; write a value, or leave the option out"
            assert (answer.code, answer.sentence) == (2, expected), command


def test_an_empty_argument_is_not_the_folder_in_which_the_command_runs() -> None:
    for words, name in (
        (("gguf", ""), "SOURCE"),
        (("run", ""), "MODEL.gguf"),
        (("measure", "x", "y", ""), "CANDIDATE"),
        (("bake", ""), "RECIPE"),
        (("card", ""), "FOLDER"),
    ):
        answer = quantkit_here(*words)
        assert (answer.code, answer.sentence) == (2, f"quantkit: {name} is empty; write a value")
