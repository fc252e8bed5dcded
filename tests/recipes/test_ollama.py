"""The part of recipes for Ollama: ollama/ matches the recipes, and each mistake is one sentence."""

from pathlib import Path

import pytest

from quantkit.errors import UsageError
from quantkit.publish.ollama.modelfile import lint_modelfile, parse_modelfile
from quantkit.recipes.ollama import modelfiles, read_ollama
from tools.ollama_folder import RECIPES, expected, present

GOOD = """\
[model]
name = "m"
source = "ns/m"
chat_template = "chatml"
eos_token = "<|im_end|>"

[ollama]
name = "ns/m"
types = ["q4_0", "Q8_0"]
messages = [["user", "Hi"]]

[ollama.parameters]
temperature = 0.5
stop = ["A", "B"]
"""


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "m.toml"
    path.write_text(text, "utf-8")
    return path


def test_the_modelfiles_of_the_repository_are_those_of_its_recipes() -> None:
    assert present() == expected(), "run `make ollama`"


def test_every_model_of_the_mission_has_a_recipe() -> None:
    assert {path.stem for path in RECIPES.glob("*.toml")} >= {
        *(f"blossom-v5-{size}" for size in ("4b", "9b", "14b", "34b", "mistral-7b")),
        *(f"blossom-v4-{base}" for base in ("yi-34b", "qwen-14b", "qwen-1_8b", "baichuan2-7b", "mistral-7b")),
        *("blossom-v5.1-34b", "blossom-v5.1-9b", "huozi3", "huozi-7b"),
        *("baichuan-7b", "baichuan2-7b-chat", "baichuan2-13b-chat", "smollm2"),
    }


def test_no_modelfile_of_the_repository_has_a_fault() -> None:
    for name, text in present().items():
        assert [finding.message for finding in lint_modelfile(text)] == [], name


def test_blossoms_modelfiles_say_what_its_publisher_says() -> None:
    files = present()
    for size in ("4b", "9b", "14b", "34b"):
        made = parse_modelfile(files[f"blossom-v5-{size}/Modelfile"])
        parameters = {name: value for name, value in made.parameters if name != "stop"}
        assert parameters == {"temperature": 0.5, "top_p": 0.85, "top_k": 50, "repeat_penalty": 1.05, "num_ctx": 4096}
        assert made.system == (
            "A chat between a human and an artificial intelligence bot. The bot gives helpful, detailed, and polite"
            " answers to the human's questions."
        )
        assert ("stop", "<|endoftext|>") in made.parameters
        assert made.template is not None and "\n|Human|: " in made.template and "\n|Bot|: " in made.template
        assert parse_modelfile(files[f"blossom-v5-{size}/Modelfile.gpu"]).sources == (
            f"azure99/blossom-v5:{size}-q4_0",
        )


def test_huozis_turns_are_named_in_chinese() -> None:
    made = parse_modelfile(present()["huozi3/Modelfile"])
    assert made.template is not None
    assert all(f"<|beginofutterance|>{role}\n" in made.template for role in ("系统", "用户", "助手"))
    assert ("stop", "<|endofutterance|>") in made.parameters


def test_a_recipe_leads_to_two_modelfiles_a_type(tmp_path: Path) -> None:
    texts = modelfiles(read_ollama(recipe(tmp_path, GOOD)))
    assert list(texts) == ["Modelfile", "Modelfile.gpu", "Modelfile.q8_0", "Modelfile.q8_0.gpu"]
    assert parse_modelfile(texts["Modelfile.q8_0"]).sources == ("./m-Q8_0.gguf",)
    assert parse_modelfile(texts["Modelfile"]).messages == (("user", "Hi"),)
    assert {("stop", "A"), ("stop", "B")} <= set(parse_modelfile(texts["Modelfile"]).parameters)


def test_tables_of_others_are_left_alone(tmp_path: Path) -> None:
    assert read_ollama(recipe(tmp_path, GOOD + '\n[formats]\ngguf = ["q2_k"]\n')).facts.name == "m"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            'eos_token = "<|im_end|>"',
            'eos_tokn = "x"',
            "{path}:5: [model] has the unknown key 'eos_tokn' (did you mean eos_token?)",
        ),
        ('name = "m"\n', "", "{path}:1: [model] lacks the key name"),
        ('chat_template = "chatml"', 'chat_template = "chatlm"', "did you mean chatml?"),
        ('eos_token = "<|im_end|>"', "eos_token = 2", "{path}:5: eos_token of [model] is 2, not a text"),
        ("[ollama]\n", "[olama]\n", "{path}:7: the recipe has the unknown key 'olama' (did you mean ollama?)"),
        ('name = "ns/m"', 'name = "NS/m"', "capital letters"),
        ('"Q8_0"', '"q99"', "unknown quantization type 'q99'"),
        ('["q4_0", "Q8_0"]', "[]", "{path}:9: types of [ollama] is empty"),
        ("temperature = 0.5", "temprature = 0.5", "did you mean temperature?"),
        (
            "temperature = 0.5",
            'temperature = "hot"',
            "{path}:13: [ollama.parameters]: PARAMETER temperature takes a number",
        ),
        ("temperature = 0.5", '"" = 0.5', "{path}:13: [ollama.parameters]: Ollama has no parameter ''"),
        ("temperature = 0.5", '"" = []', "{path}:13: [ollama.parameters]: Ollama has no parameter ''"),
        ("temperature = 0.5", "top_k = 0.5", "PARAMETER top_k takes a whole number, not 0.5"),
        ('["user", "Hi"]', '["bot", "Hi"]', "{path}:10: messages of [ollama] has ['bot', 'Hi']"),
        ("[model]", "[model", "is not TOML"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(tmp_path: Path, old: str, new: str, why: str) -> None:
    assert old in GOOD
    path = recipe(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        modelfiles(read_ollama(path))
    assert why.format(path=path) in str(caught.value)


def test_a_recipe_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the recipe"):
        read_ollama(tmp_path / "gone.toml")
