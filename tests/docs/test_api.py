"""The Python API: its examples run, its functions say what the commands say, importing it is cheap."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import quantkit
from quantkit.errors import OutputError, UsageError
from tests.helpers.command import quantkit as command
from tests.helpers.tiny import tiny_llama
from tests.helpers.tiny_tokenizers import CORPUS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "api.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    tiny_llama(folder / "FOLDER", variant="llama3")
    assert command("gguf", "FOLDER", "-t", "q8_0", "--no-logits", cwd=folder).code == 0
    (folder / "text.txt").write_text(CORPUS, "utf-8")
    return folder


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_page_runs(example: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    exec(compile(example, str(PAGE), "exec"), {})


def test_convert_writes_the_bytes_of_the_command(place: Path, tmp_path: Path) -> None:
    types = ["q4_0", "q8_0"]
    result = quantkit.convert(place / "FOLDER", types, tmp_path / "api", quantkit.ConvertOptions(logits=False))
    assert [item.output.label for item in result.outputs] == ["Q4_0", "Q8_0"]
    assert not result.failed
    words = [word for name in types for word in ("-t", name)]
    assert command("gguf", place / "FOLDER", *words, "--no-logits", "-o", tmp_path / "command").code == 0
    for name in types:
        file = f"FOLDER-GGUF/FOLDER-{name.upper()}.gguf"
        assert (tmp_path / "api" / file).read_bytes() == (tmp_path / "command" / file).read_bytes()


def test_plan_and_inspect_say_what_the_commands_say(place: Path) -> None:
    options = quantkit.PlanOptions(types=["q4_0"], n_ctx=64, bandwidth={"CPU": (1e9, "given"), "GPU": (1e9, "given")})
    words = ["-t", "q4_0", "--ctx", "64", "--bandwidth", "1G,1G", "--format", "json"]
    document = json.loads(command("plan", place / "FOLDER", *words).stdout)
    assert quantkit.plan(place / "FOLDER", options).document()["types"] == document["types"]
    document = json.loads(command("inspect", place / "FOLDER", "--format", "json").stdout)
    assert quantkit.inspect(place / "FOLDER").name == document["name"]


def test_measure_returns_the_figures_of_the_command(place: Path, tmp_path: Path) -> None:
    options = quantkit.MeasureOptions(output=tmp_path / "api", n_ctx=64, n_chunks=1)
    measured = quantkit.measure(place / "FOLDER", [place / "FOLDER-GGUF"], [place / "text.txt"], options)
    words = ["--ctx", "64", "--chunks", "1", "--gpu-layers", "none", "--format", "json", "-o", tmp_path / "command"]
    answer = command("measure", place / "FOLDER", place / "FOLDER-GGUF", "-T", place / "text.txt", *words)
    assert answer.code == 0, answer.stderr
    models = json.loads(answer.stdout)["models"]
    assert [model["quality"] for model in measured.document["models"]] == [model["quality"] for model in models]
    assert [model.label for model in measured.report.candidates] == ["q8_0"]
    files = {path.name for path in (tmp_path / "api").iterdir()}
    assert files == {"report.json", "report.md", "report.html", "plots"}
    with pytest.raises(UsageError, match="measuring needs a text"):
        quantkit.measure(place / "FOLDER", [], [])


def test_bad_requests_are_errors_with_a_next_step(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no type is given; name at least one"):
        quantkit.convert(place / "FOLDER", [], tmp_path)
    options = quantkit.ConvertOptions(logits=False)
    quantkit.convert(place / "FOLDER", ["q8_0"], tmp_path, options)
    with pytest.raises(OutputError, match="already exists; add --force"):
        quantkit.convert(place / "FOLDER", ["q8_0"], tmp_path, options)


def test_importing_quantkit_loads_neither_numpy_nor_a_room() -> None:
    code = "import sys, quantkit; print([name for name in sys.modules if name in ('numpy', 'gguf', 'quantkit.api')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("words", [["--help"], ["gguf", "--help"], ["convert", "--help"], ["awq", "--help"]])
def test_help_loads_neither_numpy_nor_jinja2_nor_the_hub_client(words: list[str]) -> None:
    code = (
        "import sys\nfrom quantkit.cli import main\nsys.argv = ['quantkit', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'gguf', 'jinja2', 'huggingface_hub', 'quantkit.conversion'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_the_public_names_are_listed_and_others_are_missing() -> None:
    assert set(quantkit.__all__) <= set(dir(quantkit))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = quantkit.nothing
