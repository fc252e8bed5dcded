"""Recipe files: how they extend each other, where a mistake is reported, and how a merged one is written."""

import json
from pathlib import Path

import pytest

from quantkit.errors import UsageError
from quantkit.recipes import open_recipe, read_recipe
from quantkit.recipes.bake.commands import Machine, convert_commands, output_of
from quantkit.recipes.bake.fingerprint import calibration_files
from quantkit.recipes.lines import line_of
from quantkit.recipes.recipe import Floor, PackedFormat
from quantkit.recipes.writing import write_recipe
from quantkit.system.python import tomllib
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
GOOD = """\
version = 1

[model]
name = "m"
source = "ns/m"  # of the hub
revision = "v1"

[formats]
gguf = [
    "q4_0",
    "Q2_K",
]
awq = { group_size = 64, skip = ["down_proj"] }
gptq = true

[calibration]
samples = 8

[measure]
texts = ["ns/texts:test"]

[floors]
max_delta = "5%"

[floors.q2_k]
max_delta = 3

[hub]
gguf = "ns/m-GGUF"
"""


def recipe(folder: Path, text: str = GOOD, name: str = "m.toml") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def test_a_recipe_is_read_whole(tmp_path: Path) -> None:
    loaded = read_recipe(recipe(tmp_path))
    assert (loaded.name, loaded.source) == ("m", "ns/m@v1")
    assert loaded.formats.names == ("awq", "gptq", "q4_0", "q2_k")
    assert loaded.formats.packed == {"awq": PackedFormat(64, ("down_proj",)), "gptq": PackedFormat(128)}
    assert loaded.calibration.samples == 8 and loaded.calibration.seq_len == 512
    assert loaded.floors["q2_k"] == Floor(delta=(3.0, False)) and loaded.floors["awq"] == Floor(delta=(0.05, True))
    assert loaded.hub == {"gguf": "ns/m-GGUF"} and not loaded.private


def test_tables_merge_and_lists_are_replaced(tmp_path: Path) -> None:
    recipe(tmp_path, GOOD, "base.toml")
    top = 'extends = "../base.toml"\n[model]\nname = "n"\n[formats]\ngguf = ["q8_0"]\ngptq = false\n'
    loaded = read_recipe(recipe(tmp_path, top, "deep/top.toml"))
    assert (loaded.name, loaded.source) == ("n", "ns/m@v1")
    assert loaded.formats.names == ("awq", "q8_0")


def test_paths_start_from_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "text.txt").write_text("words")
    base = GOOD.replace('"ns/m"', '"./weights"').replace('revision = "v1"\n', "").replace("ns/texts:test", "text.txt")
    recipe(tmp_path, base, "base.toml")
    loaded = read_recipe(recipe(tmp_path, 'extends = "../base.toml"\n', "deep/top.toml"))
    assert Path(loaded.source) == tmp_path / "weights"
    assert loaded.measure is not None and loaded.measure.texts == (str(tmp_path / "text.txt"),)


def test_a_recipe_takes_one_calibration_text_or_several(tmp_path: Path) -> None:
    for name in ("mine.txt", "default"):
        (tmp_path / name).write_text("words")
    mine, file = str(tmp_path / "mine.txt"), str(tmp_path / "default")
    cases = {
        '"mine.txt"': (mine,),
        '"default"': (),
        '["default"]': (),
        '["default", "mine.txt", "./default", "ns/texts:test"]': ("default", mine, file, "ns/texts:test"),
    }
    for text, expected in cases.items():
        path = recipe(tmp_path, GOOD.replace("samples = 8", f"samples = 8\ntext = {text}"))
        loaded = read_recipe(path)
        assert loaded.calibration.texts == expected
        words = convert_commands(loaded, ("q4_0",), tmp_path / "out", Machine())[0].words
        given = [words[number + 1] for number, word in enumerate(words) if word == "--calibration"]
        assert given == list(expected)
        assert {str(file) for file in calibration_files(loaded)} == set(expected) & {mine, file}


def test_a_folder_in_place_of_a_hub_id_has_no_revision_but_keeps_its_name_for_cards(tmp_path: Path) -> None:
    loaded = read_recipe(recipe(tmp_path), [f'model.source="{tmp_path}"'])
    assert loaded.source == str(tmp_path)
    assert loaded.base_model == "ns/m"


def test_settings_are_laid_over_the_recipe(tmp_path: Path) -> None:
    settings = ["calibration.samples=16", "model.name=other", 'formats.gguf=["q8_0"]', "calibration.samples=32"]
    loaded = read_recipe(recipe(tmp_path), settings)
    assert (loaded.name, loaded.formats.gguf, loaded.calibration.samples) == ("other", ("q8_0",), 32)


def test_a_source_too_long_for_a_file_name_is_a_hub_id_or_a_folder_that_is_not_found(tmp_path: Path) -> None:
    name = "ORG/" + 300 * "n"
    text = GOOD.replace(GOOD.split('source = "')[1].split('"')[0], name, 1)
    assert read_recipe(recipe(tmp_path, text)).source.startswith(name)
    with pytest.raises(UsageError, match="not found; check the path"):
        read_recipe(recipe(tmp_path, text.replace(name, f"./{name}")))


def test_a_recipe_written_in_one_file_says_the_same(tmp_path: Path) -> None:
    for path in (recipe(tmp_path), *sorted(RECIPES.glob("*.toml"))):
        opened = open_recipe(path)
        text = write_recipe(opened.table)
        assert tomllib.loads(text) == opened.table
        again = read_recipe(recipe(tmp_path, text, "again.toml"))
        assert again.formats == read_recipe(path).formats


def test_odd_texts_survive_being_written(tmp_path: Path) -> None:
    odd = 'a "quoted" \\ back\nslash\t\x7f\x00 活字'
    table = {"version": 1, "a b": {"c.d": odd, "e": [[odd, True]], "f": {"g": 0.5}}}
    assert tomllib.loads(write_recipe(table)) == table


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_can_be_baked(path: Path) -> None:
    loaded = read_recipe(path)
    assert path.stem.lower() in loaded.name.lower() or loaded.name.lower().startswith(path.stem)
    assert {"q4_0", "q2_k", "q4_k_m"} <= set(loaded.formats.gguf)
    assert loaded.base_model and loaded.license
    assert loaded.measure is None or loaded.floors.keys() == set(loaded.formats.names)


WRONG = {
    "an unknown table": ("[hub]", "[hubb]", "{path}:28: the recipe has the unknown key 'hubb' (did you mean hub?)"),
    "an unknown key": ("samples = 8", "sample = 8", "{path}:17: [calibration] has the unknown key 'sample' (did you"),
    "a key of a table in a line": ("skip =", "skipp =", "{path}:13: [formats.awq] has the unknown key 'skipp' (did"),
    "calibration texts without any": (
        "samples = 8",
        "text = []",
        "{path}:17: text of [calibration] is empty; list at least one text, or remove the key",
    ),
    "a calibration text that is listed twice": (
        "samples = 8",
        'text = ["default", "default"]',
        "{path}:17: text of [calibration] lists a text twice; every text must be unique",
    ),
    "a calibration text that is nothing": (
        "samples = 8",
        'text = ["default", "words"]',
        "{path}:17: text of [calibration] has 'words', which is neither a file nor a hub dataset",
    ),
    "a calibration text that is missing": (
        "samples = 8",
        'text = ["default", "./gone.txt"]',
        "{path}:17: text of [calibration]: file",
    ),
    "a number as calibration text": (
        "samples = 8",
        "text = 8",
        "{path}:17: text of [calibration] is 8, not a text or a list of texts",
    ),
    "a wrong type": ("samples = 8", 'samples = "8"', "{path}:17: samples of [calibration] is '8', not a whole number"),
    "a truth value for a number": ("samples = 8", "samples = true", "{path}:17: samples of [calibration] is True"),
    "a table that is none": ("[calibration]\nsamples = 8", "[[calibration]]\nsamples = 8", "{path}:16: calibration is"),
    "an unknown type in a list": (
        '"Q2_K",',
        '"Q2_KK",',
        "{path}:9: gguf of [formats]: unknown quantization type 'Q2_KK'",
    ),
    "nothing to make": ('"q4_0",\n    "Q2_K",\n', "", "{path}:9: gguf of [formats] is empty"),
    "5 bits": ("group_size = 64", "bits = 5", "{path}:13: bits of [formats.awq] is 5, not 4"),
    "a floor that is no number": ('"5%"', '"five"', "{path}:23: max_delta of [floors] is 'five', not a number"),
    "a floor below nothing": ("= 3\n", "= -3\n", "{path}:26: max_delta of [floors.q2_k] is -3, not a number"),
    "a floor for an unknown type": ("floors.q2_k", "floors.q2k", "{path}:25: [floors] has the unknown key 'q2k' (did"),
    "a share of more than all": ('max_delta = "5%"', "min_top1 = 95", "{path}:23: min_top1 of [floors] is 95, which"),
    "a text that is not there": (
        "ns/texts:test",
        "gone.txt",
        "{path}:20: texts of [measure]: file {folder}/gone.txt not",
    ),
    "a folder that is not there": ('"ns/m"', '"./gone"', "{path}:5: source of [model]: folder {folder}/gone not found"),
    "a source that is nothing": ('"ns/m"', '"m"', "{path}:5: source of [model] is 'm', which is neither a hub id"),
    "a name with a slash": (
        'name = "m"',
        'name = "a/b"',
        "{path}:4: name of [model] is 'a/b', which is not a plain name",
    ),
    "a repository that is none": ("ns/m-GGUF", "m-GGUF", "{path}:29: gguf of [hub] is 'm-GGUF', which is not a hub id"),
    "another version": ("version = 1", "version = 2", "{path}:1: version is 2, not 1"),
    "no name": ('name = "m"\n', "", "{path}:3: [model] lacks the key name"),
    "no name in Ollama": (
        "[calibration]\n",
        '[ollama]\nsystem = "x"\n\n[calibration]\n',
        "{path}:16: [ollama] lacks the key name; add it",
    ),
    "floors and nothing measured": (
        '[measure]\ntexts = ["ns/texts:test"]\n',
        "",
        "{path}:20: [floors] needs a measurement",
    ),
    "a base that is not there": (
        "version = 1",
        'extends = "no.toml"',
        "{path}:1: extends: cannot read {folder}/no.toml",
    ),
    "no TOML": ("[model]", "[model", "at line 3"),
    "an imatrix that is needed": ('"q4_0",', '"iq1_s",]\nimatrix = false\nx = [', "unknown key 'x'"),
}


@pytest.mark.parametrize("old, new, words", WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_one_sentence_with_file_and_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in GOOD
    path = recipe(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        read_recipe(path)
    assert words.format(path=path, folder=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_base_names_the_base(tmp_path: Path) -> None:
    base = recipe(tmp_path, GOOD.replace("samples = 8", "samples = 0"), "base.toml")
    with pytest.raises(UsageError) as caught:
        read_recipe(recipe(tmp_path, 'extends = "base.toml"\n[model]\nname = "n"\n', "top.toml"))
    assert str(caught.value).startswith(f"{base}:17: samples of [calibration] is 0, not a whole number of at least 1")


def test_a_cycle_of_extends_is_one_sentence(tmp_path: Path) -> None:
    recipe(tmp_path, 'extends = "b.toml"\n', "a.toml")
    b = recipe(tmp_path, '# b\nextends = "c.toml"\n', "b.toml")
    c = recipe(tmp_path, 'version = 1\nextends = "b.toml"\n', "c.toml")
    with pytest.raises(UsageError) as caught:
        read_recipe(tmp_path / "a.toml")
    assert str(caught.value).startswith(f"{c}:2: extends forms a cycle: {b.name} -> {c.name} -> {b.name}")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("calibration.samples=x", "--set calibration.samples=x: samples of [calibration] is 'x', not a whole number"),
        (
            "formats.awq.group_size=0",
            "group_size of [formats.awq] is 0, not a whole number of at least 1, or -1 for one",
        ),
        ("floors.max_kl=-1", "max_kl of [floors] is -1, not a number of at least 0"),
        ("floors.max_delta=-1", "max_delta of [floors] is -1, not a number of at least 0, or a text"),
        ("calibration.sample=8", "--set calibration.sample=8: [calibration] has the unknown key 'sample' (did you"),
        ("samples", "--set samples is not KEY=VALUE"),
        ("= 3", "--set = 3 is not KEY=VALUE"),
        ("a b=3", "--set a b=3: 'a b' is not a key"),
    ],
)
def test_a_wrong_setting_is_one_sentence(tmp_path: Path, setting: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_recipe(recipe(tmp_path), [setting])
    assert words in str(caught.value)


def test_lines_are_found_whatever_way_a_key_is_written() -> None:
    text = '# a\n\na.b = """\n[no.table]\nc = 1"""\n[t]\n\n"q.r" = [\n  1,\n  # [x]\n  2,\n]\n'
    text += "u = { v = { w = 1 } }\n[t.s]\nx = 1\n"
    assert line_of(text, ("a", "b")) == 3
    assert line_of(text, ("no",)) is None
    assert line_of(text, ("t", "q.r")) == 8
    assert line_of(text, ("t", "u", "v", "w")) == 13
    assert line_of(text, ("t", "s")) == 14 and line_of(text, ("t", "s", "x")) == 15


FOLDERS = """
[model]
name = "m"
source = "{source}"
[formats]
gguf = ["q4_0"]
imatrix = false
gptq = {{ group_size = 32 }}
w4a16 = {{ group_size = 32 }}
fp8 = true
mlx-4bit = {{ group_size = 32 }}
mlx-8bit = true
nvfp4a16 = {{ skip = ["down_proj"] }}
[calibration]
samples = 4
seq_len = 32
[measure]
texts = ["ns/texts:test"]
[floors.fp8]
max_kl = 0.1
[hub]
w4a16 = "ns/m-W4A16"
"""


def test_every_folder_format_is_a_key_and_commands_take_what_goes_together(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source")
    loaded = read_recipe(recipe(tmp_path, FOLDERS.format(source=source)))
    assert loaded.formats.packed["mlx-8bit"].group_size == 64 and loaded.formats.packed["fp8"].group_size is None
    assert loaded.floors["fp8"].kl == 0.1 and loaded.hub == {"w4a16": "ns/m-W4A16"}
    commands = convert_commands(loaded, loaded.formats.names, tmp_path / "out", Machine())
    assert [command.formats for command in commands] == [
        ("gptq", "w4a16", "fp8", "mlx-4bit", "q4_0"),
        ("nvfp4a16",),
        ("mlx-8bit",),
    ]
    for command in commands:
        done = quantkit(*command.line, "--dry-run", "--format", "json")
        assert done.code == 0, done.stderr
        made = {Path(output["folder"]).name for output in json.loads(done.stdout)["outputs"]}
        planned = [output_of(loaded, tmp_path / "out", name) for name in command.formats]
        assert made == {path.parent.name if path.suffix == ".gguf" else path.name for path in planned}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fp8 = { group_size = 64 }", "group_size"),
        ("w4a16 = { bits = 8 }", "bits"),
        ("fp9 = true", "fp8"),
    ],
)
def test_options_that_a_folder_format_does_not_have_are_refused(line: str, words: str, tmp_path: Path) -> None:
    text = f'[model]\nname = "m"\nsource = "ns/m"\n[formats]\n{line}\n'
    with pytest.raises(UsageError, match=words):
        read_recipe(recipe(tmp_path, text))
