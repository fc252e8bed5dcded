"""`quantkit bake`: its outputs, repeated steps, kills, floors, pushes, bad input."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from quantkit.recipes import read_recipe
from tests.helpers.command import Answer, command, quantkit
from tests.helpers.tiny import tiny_llama
from tests.helpers.tiny_tokenizers import CORPUS
from tests.helpers.upload_hub import running_upload_hub
from tests.recipes.families import TINY

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
RECIPE = """\
version = 1

[model]
name = "tiny"
source = "./model"
chat_template = "chatml"
license = "apache-2.0"

[formats]
gguf = ["q8_0", "q4_0"]
awq = { group_size = 32 }
gptq = { group_size = 32 }

[calibration]
samples = 8
seq_len = 32
chat = false

[measure]
texts = ["text.txt"]
ctx = 64
chunks = 2
gpu_layers = "none"

[floors]
max_delta = "100%"

[ollama]
name = "ns/tiny"
types = ["q4_0"]

[phone]
types = ["q4_0"]

[hub]
gguf = "me/tiny-GGUF"
awq = "me/tiny-AWQ"
"""
# their bytes tell of times, or are pictures
UNLIKE = ("quantkit.json", "report.json", "report.md", "report.html", "README.md", "tiny.bake.journal")


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in UNLIKE and path.suffix not in (".png", ".svg")
    }


def states(answer: Answer) -> dict[str, str]:
    assert answer.code == 0, answer.stderr
    (recipe,) = json.loads(answer.stdout)["recipes"]
    return {step["step"]: step["state"] for step in recipe["steps"]}


def converted(answer: Answer) -> set[str]:
    """The types that its conversions made."""
    (recipe,) = json.loads(answer.stdout)["recipes"]
    lines = next(step["commands"] for step in recipe["steps"] if step["step"] == "convert")
    return {word for line in lines for flag, word in pairwise(line) if flag == "-t"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe, its model, its text."""
    folder = tmp_path_factory.mktemp("home")
    tiny_llama(folder / "model", variant="llama3", hidden=64, intermediate=96, layers=3)
    (folder / "text.txt").write_text(CORPUS, "utf-8")
    (folder / "tiny.toml").write_text(RECIPE, "utf-8")
    return folder


@pytest.fixture(scope="module")
def first(home: Path) -> Answer:
    """A whole bake, from nothing, in home/out."""
    return quantkit("bake", "tiny.toml", "-o", "out", "--format", "json", cwd=home)


Bake = Callable[..., Answer]


@pytest.fixture
def out(home: Path, first: Answer, tmp_path: Path) -> Path:
    """A copy of what the first bake left, its times of change too."""
    assert first.code == 0, first.stderr
    return Path(shutil.copytree(home / "out", tmp_path / "out"))


@pytest.fixture
def bake(home: Path, out: Path) -> Bake:
    """The recipe again, over `out`, with more words."""

    def run(*words: str, env: dict[str, str] | None = None) -> Answer:
        return quantkit("bake", "tiny.toml", "-o", out, "--format", "json", *words, cwd=home, env=env)

    return run


# --- what is made ---


def test_one_command_makes_everything(home: Path, first: Answer) -> None:
    assert set(states(first)) == {"convert", "measure", "ollama", "cards", "termux"}
    assert set(states(first).values()) == {"done"}
    made = {str(path.relative_to(home / "out")) for path in (home / "out").rglob("*") if path.is_file()}
    assert made >= {
        "tiny-GGUF/tiny-Q8_0.gguf",
        "tiny-GGUF/tiny-Q4_0.gguf",
        "tiny-GGUF/Modelfile",
        "tiny-GGUF/Modelfile.gpu",
        "tiny-GGUF/README.md",
        "tiny-AWQ/model.safetensors",
        "tiny-AWQ/README.md",
        "tiny-GPTQ/model.safetensors",
        "tiny-GPTQ/README.md",
        "tiny-report/report.json",
        "tiny-report/report.md",
        "tiny-termux-q4_0.sh",
        "tiny.recipe.toml",
        "tiny.bake.journal",
    }
    assert not [name for name in made if "partial" in name]


def test_the_summary_is_what_was_written_and_measured(home: Path, first: Answer) -> None:
    (recipe,) = json.loads(first.stdout)["recipes"]
    report = json.loads((home / "out" / "tiny-report" / "report.json").read_text("utf-8"))
    measured = {model["path"]: model["quality"][0] for model in report["models"]}
    assert [output["format"] for output in recipe["outputs"]] == ["awq", "gptq", "q8_0", "q4_0"]
    for output in recipe["outputs"]:
        path = Path(output["path"])
        files = {path.name: path} if path.is_file() else {name: path / name for name in output["sha256"]}
        assert output["bytes"] == sum(file.stat().st_size for file in files.values())
        assert output["sha256"] == {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
        assert output["quality"] == measured[path.name]
    assert all(step["peak_memory_bytes"] > 20e6 for step in recipe["steps"] if step["commands"])


def test_each_step_is_a_command_that_a_user_can_run(home: Path, first: Answer, tmp_path: Path) -> None:
    (recipe,) = json.loads(first.stdout)["recipes"]
    (line,) = next(step["commands"] for step in recipe["steps"] if step["step"] == "convert")
    assert line[0] == "quantkit"
    place = line.index("-o")
    assert quantkit(*line[1:place], "-o", tmp_path, *line[place + 2 :]).code == 0
    alone, baked = hashes(tmp_path), hashes(home / "out")
    assert alone and all(baked[name] == digest for name, digest in alone.items())


def test_people_get_one_table_and_a_line_a_step(home: Path, out: Path) -> None:
    answer = quantkit("bake", "tiny.toml", "-o", out, cwd=home)
    assert answer.code == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[1].split() == ["format", "size", "perplexity", "KL", "where"]
    assert [line.split()[0] for line in lines[2:6]] == ["awq", "gptq", "q8_0", "q4_0"]
    assert all("±" in line for line in lines[2:6])
    assert [line.partition(":")[0] for line in lines[6:12]] == [
        "convert", "measure", "ollama", "cards", "termux", "report"
    ]  # fmt: skip


def test_a_dry_run_writes_nothing_and_states_the_sizes_that_follow(home: Path, first: Answer, tmp_path: Path) -> None:
    answer = quantkit("bake", "tiny.toml", "-o", tmp_path / "dry", "--dry-run", "--format", "json", cwd=home)
    assert answer.code == 0, answer.stderr
    assert not (tmp_path / "dry").exists()
    (planned,) = json.loads(answer.stdout)["recipes"]
    (made,) = json.loads(first.stdout)["recipes"]
    assert planned["bytes"] == {output["format"]: pytest.approx(output["bytes"], abs=1) for output in made["outputs"]}
    assert [command["step"] for command in planned["commands"]] == ["convert", "measure", "ollama", "termux"]
    assert planned["disk_bytes"] >= sum(planned["bytes"].values()) and planned["expected_peak_memory_bytes"] > 20e6


# --- what is redone ---


def test_a_second_bake_does_nothing(bake: Bake, out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert set(states(bake()).values()) == {"kept"}
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert after == before


def test_a_changed_recipe_redoes_what_it_touches(bake: Bake, out: Path) -> None:
    weights = {path: path.stat().st_mtime_ns for path in out.rglob("*.gguf")}
    gptq = out / "tiny-GPTQ" / "model.safetensors"
    stamp = gptq.stat().st_mtime_ns
    answer = bake("--set", 'formats.awq.skip=["down_proj"]')
    assert states(answer) == {
        "convert": "done", "measure": "done", "ollama": "kept", "cards": "done", "termux": "kept"
    }  # fmt: skip
    assert converted(answer) == {"awq"}
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.gguf")} == weights
    assert gptq.stat().st_mtime_ns == stamp
    assert (out / "tiny-AWQ" / "README.md").exists()


def test_another_system_message_is_a_matter_of_ollama_alone(bake: Bake, out: Path) -> None:
    answer = bake("--set", 'ollama.system="Be brief."')
    done = {step for step, state in states(answer).items() if state == "done"}
    assert done == {"ollama"}
    assert "Be brief." in (out / "tiny-GGUF" / "Modelfile").read_text("utf-8")


def test_a_lost_output_is_made_again(bake: Bake, out: Path, home: Path) -> None:
    (out / "tiny-GGUF" / "tiny-Q4_0.gguf").unlink()
    answer = bake("--only", "convert")
    assert states(answer) == {"convert": "done"} and converted(answer) == {"q4_0"}
    assert hashes(out)["tiny-GGUF/tiny-Q4_0.gguf"] == hashes(home / "out")["tiny-GGUF/tiny-Q4_0.gguf"]


@pytest.mark.full
def test_only_says_which_steps(bake: Bake, out: Path) -> None:
    shutil.rmtree(out / "tiny-report")
    assert states(bake("--only", "measure")) == {"measure": "done"}
    assert (out / "tiny-report" / "report.json").exists()


@pytest.mark.full
def test_what_somebody_else_left_is_not_replaced_unasked(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny-GGUF" / "tiny-Q8_0.gguf"
    file.parent.mkdir()
    file.write_bytes(b"mine")
    words = ("bake", "tiny.toml", "-o", tmp_path, "--only", "convert", "--set", "formats.awq=false")
    words += ("--set", "formats.gptq=false", "--set", "formats.imatrix=false")
    for _ in range(2):
        answer = quantkit(*words, cwd=home)
        assert answer.code == 1 and "not as this bake left it" in answer.sentence
        assert file.read_bytes() == b"mine"
    assert quantkit(*words, "--force", cwd=home).code == 0
    assert file.stat().st_size > 1000


def test_a_modelfile_edited_by_hand_is_not_replaced_unasked(bake: Bake, out: Path) -> None:
    edited = out / "tiny-GGUF" / "Modelfile"
    edited.write_text(edited.read_text("utf-8") + "# mine\n", "utf-8")
    answer = bake("--set", "ollama.parameters.temperature=0.1")
    assert answer.code == 1 and "--force" in answer.sentence
    assert edited.read_text("utf-8").endswith("# mine\n")


@pytest.mark.full
def test_killed_five_times_it_ends_with_the_same_bytes(home: Path, first: Answer, tmp_path: Path) -> None:
    assert first.code == 0, first.stderr
    words = command("bake", "tiny.toml", "-o", tmp_path, "--format", "json")
    rng, kills, span = random.Random(9), 0, 2.0
    while kills < 5:
        running = subprocess.Popen(words, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, span))
        if running.poll() is not None:
            shutil.rmtree(tmp_path)
            span /= 2
            continue
        kills += 1
        running.send_signal(signal.SIGKILL)
        running.wait()
        time.sleep(0.2)
    answer = subprocess.run(words, cwd=home, capture_output=True, text=True, timeout=280, check=False)
    assert answer.returncode == 0, answer.stderr
    there, here = hashes(home / "out"), hashes(tmp_path)
    # beside the outputs' paths in it, the recipe and the Modelfiles are the same
    assert here == there
    once, again = (
        [model["quality"] for model in json.loads((folder / "tiny-report" / "report.json").read_text())["models"]]
        for folder in (home / "out", tmp_path)
    )
    assert once == again
    assert not list(tmp_path.rglob("*.partial"))


# --- floors and pushes ---


def test_floors_that_are_not_met_exit_3_after_everything_and_nothing_is_pushed(bake: Bake, tmp_path: Path) -> None:
    with running_upload_hub() as hub:
        words = ("--push", "--set", "floors.q4_0.max_kl=0.000001")
        answer = bake(*words, env=hub_env(hub.endpoint, tmp_path))
    assert answer.code == 3
    assert "tiny-Q4_0: on text.txt its mean KL divergence is" in answer.sentence and "awq" not in answer.sentence
    assert not hub.repos
    (recipe,) = json.loads(answer.stdout)["recipes"]
    assert recipe["steps"][-1] == recipe["steps"][-1] | {"step": "push", "state": "left out"}


@pytest.mark.full
def test_nothing_is_pushed_unless_asked_and_then_all_of_it(bake: Bake, tmp_path: Path) -> None:
    with running_upload_hub() as hub:
        env = hub_env(hub.endpoint, tmp_path)
        assert bake(env=env).code == 0 and not hub.repos
        answer = bake("--push", env=env)
        assert answer.code == 0, answer.stderr
        (recipe,) = json.loads(answer.stdout)["recipes"]
        assert recipe["pushed"] == ["me/tiny-GGUF", "me/tiny-AWQ"]
        assert set(hub.repos) == {"me/tiny-GGUF", "me/tiny-AWQ"}
        assert {"tiny-Q8_0.gguf", "tiny-Q4_0.gguf", "README.md", "Modelfile"} <= set(hub.repos["me/tiny-GGUF"].files)


def test_what_was_not_measured_as_it_is_is_not_pushed(bake: Bake) -> None:
    answer = bake("--push", "--only", "cards", "--set", "measure.chunks=1")
    assert answer.code == 3 and "was not measured as it is now" in answer.sentence


def hub_env(endpoint: str, home: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_writer",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


# --- several recipes, and bad ones ---


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("step", ["ollama", "termux"])
def test_a_model_without_a_template_is_refused_before_it_is_converted(tmp_path: Path, step: str, dry_run: bool) -> None:
    config = tiny_llama(tmp_path / "model", hidden=64, intermediate=96) / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "chat_template"}))
    other = {"ollama": "[phone]", "termux": "[ollama]"}[step]
    tables = RECIPE.replace('chat_template = "chatml"\n', "").split("\n\n")
    left_out = (other, "[measure]", "[floors]", "[hub]")
    (tmp_path / "tiny.toml").write_text("\n\n".join(table for table in tables if not table.startswith(left_out)))
    answer = quantkit("bake", "tiny.toml", "-o", "out", *(["--dry-run"] if dry_run else []), cwd=tmp_path)
    assert answer.code == 2
    assert "has no chat template and none is known for it; add chat_template to [model]: a file" in answer.stderr
    assert not list((tmp_path / "out").glob("tiny-*"))


@pytest.mark.full
def test_one_failing_recipe_leaves_the_others_baked(home: Path, tmp_path: Path) -> None:
    other = RECIPE.replace('"tiny"', '"other"').replace("samples = 8", "samples = 8\ntext = './short.txt'")
    (home / "other.toml").write_text(other, "utf-8")
    (home / "short.txt").write_text("short", "utf-8")
    words = ("--set", 'formats.gguf=["q4_0"]', "--set", "formats.awq=false", "--only", "convert", "-o", tmp_path)
    answer = quantkit("bake", "other.toml", "tiny.toml", *words, "--format", "json", cwd=home)
    assert answer.code == 1 and answer.sentence.startswith("quantkit: other: ")
    document = json.loads(answer.stdout)
    assert [baked["name"] for baked in document["recipes"]] == ["tiny"]
    assert [baked["name"] for baked in document["failed"]] == ["other"]
    assert (tmp_path / "tiny-GGUF" / "tiny-Q4_0.gguf").exists()


BAD = {
    "an unknown key": (["tiny.toml", "--set", "model.nmae=x"], 2, "did you mean name?"),
    "a recipe that is not there": (["gone.toml"], 2, "cannot read the recipe gone.toml"),
    "the same model twice": (["tiny.toml", "tiny.toml"], 2, "both name their model tiny"),
    "an Ollama parameter without a name": (
        ["tiny.toml", "--dry-run", "--set", 'ollama.parameters={"" = []}'],
        2,
        "[ollama.parameters]: Ollama has no parameter ''",
    ),
    "an unknown step": (["tiny.toml", "--only", "mesure"], 2, "mesure"),
    "only push without push": (["tiny.toml", "--only", "push"], 2, "pass both"),
    "measuring what is not there": (["tiny.toml", "--only", "measure"], 1, "run the step convert first"),
    "a source that is nothing": (["tiny.toml", "--source", "nowhere"], 2, "quantkit: --source nowhere: source of"),
    "no group of 128": (["tiny.toml", "--set", "formats.awq=true", "--only", "convert"], 1, "group size 128"),
}


@pytest.mark.parametrize(("words", "code", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence(home: Path, tmp_path: Path, words: list[str], code: int, sentence: str) -> None:
    answer = quantkit("bake", *words, "-o", tmp_path / "x", cwd=home)
    assert answer.code == code, answer.stderr
    assert sentence in answer.stderr and "Traceback" not in answer.stderr


# --- every recipe of the repository ---

_QUICK: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "name", [name if name in _QUICK else pytest.param(name, marks=pytest.mark.full) for name in sorted(TINY)]
)
def test_a_tiny_model_of_the_family_goes_through_the_recipe(name: str, home: Path, tmp_path: Path) -> None:
    TINY[name](tmp_path / "model")
    recipe_file = read_recipe(RECIPES / f"{name}.toml")
    small = ["calibration.samples=8", "calibration.seq_len=32", f'measure.texts=["{home / "text.txt"}"]']
    small += ["measure.chunks=2", "measure.ctx=64", 'formats.gguf=["q4_0", "q8_0"]']
    small += [f"formats.{method}={{group_size=32}}" for method in recipe_file.formats.packed]
    # what so small a model loses says nothing
    small += ['floors.max_delta="1000%"', "floors.min_top1=0"]
    words = [word for setting in small for word in ("--set", setting)]
    answer = quantkit("bake", RECIPES / f"{name}.toml", "--source", tmp_path / "model", *words, "-o", tmp_path / "out",
                      "--format", "json")  # fmt: skip
    assert answer.code == 0, answer.stderr
    (recipe,) = json.loads(answer.stdout)["recipes"]
    assert [output["format"] for output in recipe["outputs"]] == [*recipe_file.formats.packed, "q4_0", "q8_0"]
    assert all(output["quality"]["kl"]["mean"] >= 0 for output in recipe["outputs"])
    folder = tmp_path / "out" / f"{recipe_file.name}-GGUF"
    assert (folder / "Modelfile").exists() and (folder / "README.md").exists()


def test_every_recipe_has_its_tiny_model() -> None:
    assert {path.stem for path in RECIPES.glob("*.toml")} == set(TINY)
