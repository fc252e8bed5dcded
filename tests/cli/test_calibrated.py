"""`quantkit awq`, `quantkit gptq` and `quantkit convert` as a user meets them: kills, bad input, what they say."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from gguf import GGUFReader

from quantkit.cli import main
from tests.helpers.command import Answer, command, quantkit
from tests.helpers.tiny import tiny_llama

PACKED = (("awq",), ("gptq",))
SMALL = ("--samples", "8", "--seq-len", "32", "--raw", "--group-size", "32")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("sound") / "model", variant="llama3", hidden=64, intermediate=96)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture") / "mixture"
    return tiny_llama(folder, variant="mixtral", hidden=64, intermediate=96)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """The command line in this process."""

    def run(*words: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["quantkit", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    return run


Here = Callable[..., Answer]


def hashes(folder: Path) -> dict[str, str]:
    """Of every file below but the record, which has times in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "quantkit.json"
    }


# --- what is written ---


def test_one_document_tells_all_and_the_folders_record_it(here: Here, mixture: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The river carries what the hills let go. " * 400)
    answer = here(
        "convert", mixture, "-t", "awq", "-t", "gptq", *SMALL, "--calibration", text, "-o", tmp_path, "--format", "json"
    )
    assert answer.code == 0, answer.stderr
    document = json.loads(answer.stdout)
    assert [entry["type"] for entry in document["outputs"]] == ["GPTQ", "AWQ"]
    assert document["calibration"] == {
        "text": "text.txt",
        "sha256": hashlib.sha256((text.read_text() + "\n\n").encode()).hexdigest(),
        "samples": 8,
        "tokens_per_sample": 32,
    }
    for output in document["outputs"]:
        folder = Path(output["folder"])
        assert output["bytes"] >= sum(file["bytes"] for file in output["files"]) - 1
        assert output["verified"]
        record = json.loads((folder / "quantkit.json").read_text())["outputs"][folder.name]
        assert record["calibration"]["sha256"] == document["calibration"]["sha256"]
        weights = folder / "model.safetensors"
        assert record["files"]["model.safetensors"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert record["relative_error"] == output["relative_error"]
        assert len(record["relative_error"]) == 2 * (4 + 4 * 3)
        # each of 256 tokens goes to two of four experts
        assert record["tokens_per_expert"].keys() == {"layer 0", "layer 1"}
        for tokens in record["tokens_per_expert"].values():
            assert sum(tokens.values()) == 8 * 32 * 2
            assert set(tokens) == {f"expert {number}" for number in range(4)}
        assert str(tmp_path) not in json.dumps(record)
    inspected = here("inspect", tmp_path / "mixture-AWQ")
    assert inspected.code == 0, inspected.stderr
    assert "awq" in inspected.stdout.lower()


def test_several_texts_are_named_in_the_document_the_record_and_the_page(
    here: Here, sound: Path, tmp_path: Path
) -> None:
    text = tmp_path / "own.txt"
    text.write_text("The river carries what the hills let go. " * 400)
    words = ("awq", sound, *SMALL, "--calibration", "default", "--calibration", text, "-o", tmp_path)
    answer = here(*words, "--format", "json")
    assert answer.code == 0, answer.stderr
    calibration = json.loads(answer.stdout)["calibration"]
    assert calibration["text"] == ["quantkit's default text", "own.txt"]
    assert calibration["sha256"][1] == hashlib.sha256((text.read_text() + "\n\n").encode()).hexdigest()
    assert (calibration["samples"], calibration["samples_per_text"]) == (8, [4, 4])
    (folder,) = tmp_path.glob("*-AWQ")
    record = json.loads((folder / "quantkit.json").read_text())["outputs"][folder.name]
    assert record["calibration"] == calibration | {"chat_template": False}
    page = " ".join(here("inspect", folder).stdout.split())
    assert "calibrated on quantkit's default text and own.txt (8 samples of 32 tokens)" in page


def test_a_run_with_other_texts_does_not_resume_that_of_the_first(here: Here, sound: Path, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("The river carries what the hills let go. " * 400)
    texts = ("--calibration", text, "--calibration", "default")
    with patch("quantkit.conversion.run.verify_outputs", side_effect=KeyboardInterrupt):
        assert here("gptq", sound, *SMALL, *texts, "-o", tmp_path).code != 0
    other = here("gptq", sound, *SMALL, *texts[2:], *texts[:2], "-o", tmp_path)
    assert other.code == 1 and "unfinished run" in other.sentence
    same = here("gptq", sound, *SMALL, *texts, "-o", tmp_path, "--format", "json")
    assert same.code == 0 and json.loads(same.stdout)["resumed_layers"] == 2


def test_a_dry_run_writes_nothing_and_states_the_sizes_that_follow(here: Here, sound: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("convert", sound, "-t", "awq", "-t", "gptq", "-t", "q8_0", *SMALL, "-o", out, "--format", "json")
    dry = here(*words, "--dry-run")
    assert dry.code == 0, dry.stderr
    assert not out.exists()
    stated = {
        Path(output["folder"]) / file["name"]: file["bytes"]
        for output in json.loads(dry.stdout)["outputs"]
        for file in output["files"]
    }
    assert here(*words).code == 0
    assert stated == {path: path.stat().st_size for path in (*out.glob("*/*.safetensors"), *out.glob("*/*.gguf"))}
    assert sorted(path.name for path in out.iterdir()) == ["model-AWQ", "model-GGUF", "model-GPTQ"]


def test_what_is_skipped_stays_a_matrix_and_a_pattern_that_matches_nothing_is_refused(
    here: Here, sound: Path, tmp_path: Path
) -> None:
    answer = here("gptq", sound, *SMALL, "--skip", "down_proj", "--skip", "*.0.self_attn.*", "-o", tmp_path)
    assert answer.code == 0, answer.stderr
    config = json.loads((tmp_path / "model-GPTQ" / "config.json").read_text())["quantization_config"]
    header = (tmp_path / "model-GPTQ" / "model.safetensors").read_bytes()[:100_000]
    for layer in (0, 1):
        assert f"model.layers.{layer}.mlp.down_proj.weight".encode() in header
    assert b"model.layers.0.self_attn.q_proj.weight" in header
    assert b"model.layers.1.self_attn.q_proj.qweight" in header
    assert "down_proj" in json.dumps(config)
    refused = here("gptq", sound, *SMALL, "--skip", "mlp.fc1", "-o", tmp_path / "no")
    assert refused.code == 2
    assert "--skip mlp.fc1 matches no linear" in refused.sentence
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("kind", ["sound", "mixture"])
def test_propagating_what_is_quantized_gives_other_weights(
    kind: str, here: Here, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(kind)
    weights = {}
    for propagate in ("float", "quantized"):
        out = tmp_path / propagate
        answer = here("gptq", source, *SMALL, "--bits", "3", "--propagate", propagate, "-o", out, "--name", "m")
        assert answer.code == 0, answer.stderr
        weights[propagate] = hashes(out / "m-GPTQ")
        record = json.loads((out / "m-GPTQ" / "quantkit.json").read_text())["outputs"]["m-GPTQ"]
        assert record["options"]["propagate"] == propagate
    different = {name for name in weights["float"] if weights["float"][name] != weights["quantized"][name]}
    assert different == {"model.safetensors"}


@pytest.mark.parametrize(("method", "bits", "is_warned"), [("awq", 3, True), ("awq", 4, False), ("gptq", 3, False)])
def test_widths_that_few_loaders_read_have_a_warning(
    method: str, bits: int, is_warned: bool, here: Here, sound: Path, tmp_path: Path
) -> None:
    answer = here(method, sound, *SMALL, "--bits", bits, "--dry-run", "-o", tmp_path)
    assert answer.code == 0
    assert ("load AWQ of 4 bits only; more loaders read GPTQ of 3 bits" in answer.stderr) == is_warned


def test_the_gguf_part_is_what_the_importance_matrix_written_and_read_gives(here: Here, tmp_path: Path) -> None:
    """`quantkit imatrix` and `quantkit gguf --imatrix` are held against llama.cpp's own tools elsewhere."""
    source = tiny_llama(tmp_path / "model", variant="mixtral", intermediate=256)
    assert here("convert", source, "-t", "awq", "-t", "q2_k", *SMALL, "-o", tmp_path / "a", "--no-logits").code == 0
    assert here("imatrix", source, *SMALL[:5], "-o", tmp_path / "imatrix.gguf").code == 0
    answer = here(
        "gguf", source, "-t", "q2_k", "--imatrix", tmp_path / "imatrix.gguf", "-o", tmp_path / "b", "--no-logits"
    )
    assert answer.code == 0, answer.stderr
    actual, expected = (
        {
            tensor.name: tensor.data
            for tensor in GGUFReader(tmp_path / folder / "model-GGUF" / "model-Q2_K.gguf").tensors
        }
        for folder in ("a", "b")
    )
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[name], expected[name]) for name in expected)


# --- kills ---

KINDS = ("-t", "awq", "-t", "gptq", "-t", "q8_0", "-t", "q2_k")


@pytest.mark.full
def test_a_conversion_killed_at_ten_moments_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """tests/conversion/test_calibrated.py kills AWQ and GPTQ alone; here the GGUF part too."""
    deep = tiny_llama(tmp_path / "model", variant="llama3", hidden=256, intermediate=512, layers=12)
    assert quantkit("convert", deep, *KINDS, *SMALL, "-o", tmp_path / "undisturbed", "--threads", "2").code == 0
    expected, out = hashes(tmp_path / "undisturbed"), tmp_path / "out"
    words = command("convert", deep, *KINDS, *SMALL, "-o", out, "--threads", "2")
    moments, kills, in_gguf = random.Random(4), 0, 0
    while kills < 10:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        gguf = kills >= 5
        while process.poll() is None and not (
            list(out.glob("model-GGUF/*.partial")) if gguf else layers_done(out) > 2 * kills
        ):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05 if gguf else 0.2))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        in_gguf += gguf
        assert not (out / "model-AWQ").exists()
        assert not (out / "model-GPTQ").exists()
    assert kills >= 6
    assert in_gguf >= 1
    answer = quantkit(*words[3:], *(["--force"] if not (out / "model-conversion.partial").exists() else []))
    assert answer.code == 0, answer.stderr
    assert hashes(out) == expected
    assert sorted(path.name for path in out.iterdir()) == ["model-AWQ", "model-GGUF", "model-GPTQ"]


def layers_done(out: Path) -> int:
    journal = out / "model-conversion.partial" / "journal"
    try:
        return journal.read_text().count('"tensor":"layer')
    except FileNotFoundError:
        return 0


# --- bad input ---


def text_of(content: bytes) -> Callable[[Path], tuple[str | Path, ...]]:
    def words(folder: Path) -> tuple[str | Path, ...]:
        (folder / "text.txt").write_bytes(content)
        return ("--calibration", folder / "text.txt")

    return words


REFUSED: dict[str, tuple[int, str, Callable[[Path], tuple[str | Path, ...]]]] = {
    "a text too short": (1, "pass a longer text", text_of(b"The hills let go. " * 9)),
    "an empty text": (1, "empty", text_of(b"")),
    "a binary text": (1, "not text", text_of(b"\x7fELF\x00\x00")),
    "a text that is not UTF-8": (1, "UTF-8", text_of(b"caf\xe9 " * 999)),
    "a text that is not there": (
        1,
        "absent.txt not found",
        lambda folder: ("--calibration", folder / "absent.txt"),
    ),
    "a group that does not divide": (1, "use a group size of 32, 16 or -1", lambda _: ("--group-size", "64")),
    "a group of nothing": (2, "group size 0 is not valid", lambda _: ("--group-size", "0")),
    "five bits": (2, "5 bits are not supported", lambda _: ("--bits", "5")),
    "no samples": (2, "--samples", lambda _: ("--samples", "0")),
    "samples of one token": (2, "--seq-len", lambda _: ("--seq-len", "1")),
    "too little memory": (2, "--max-ram 10 MB is too small", lambda _: ("--max-ram", "10M")),
    "a name with a folder in it": (2, "is not a plain name", lambda _: ("--name", "../elsewhere")),
    "a size that is none": (2, "--max-shard-size", lambda _: ("--max-shard-size", "much")),
    "a GPU without torch": (2, "pip install", lambda _: ("--device", "cuda")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_sentence_and_leaves_nothing(name: str, here: Here, sound: Path, tmp_path: Path) -> None:
    code, sentence, words = REFUSED[name]
    answer = here("gptq", sound, *SMALL, "-o", tmp_path / "out", *words(tmp_path))
    assert answer.code == code, answer.stderr
    assert sentence in answer.stderr
    assert "Traceback" not in answer.stderr
    if code == 1:
        assert sentence in answer.sentence
    assert not (tmp_path / "out").exists()


def damaged(source: Path, folder: Path, name: str, change: Callable[[np.ndarray], None]) -> Path:
    """A copy of the checkpoint with one tensor (bf16) changed."""
    copy = Path(shutil.copytree(source, folder))
    file = copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8:start])[name]["data_offsets"]
    values = np.frombuffer(data, np.uint16, (end - begin) // 2, start + begin)
    change(values)
    file.write_bytes(data)
    return copy


def nan(values: np.ndarray) -> None:
    values[7] = 0x7FC0


def zero(values: np.ndarray) -> None:
    values[:] = 0


@pytest.mark.parametrize("method", ["awq", "gptq"])
@pytest.mark.parametrize("tensor", ["self_attn.q_proj", "mlp.up_proj", "post_attention_layernorm"])
def test_weights_that_are_not_finite_end_in_the_name_of_their_layer(
    method: str, tensor: str, here: Here, sound: Path, tmp_path: Path
) -> None:
    source = damaged(sound, tmp_path / "model", f"model.layers.1.{tensor}.weight", nan)
    answer = here(method, source, *SMALL, "-o", tmp_path / "out")
    assert answer.code == 1
    assert "model.layers.1" in answer.sentence
    assert "not finite" in answer.sentence
    assert list((tmp_path / "out").iterdir()) == []


def test_an_input_that_is_always_zero_is_named(here: Here, sound: Path, tmp_path: Path) -> None:
    source = damaged(sound, tmp_path / "model", "model.layers.1.input_layernorm.weight", zero)
    answer = here("gptq", source, *SMALL, "-o", tmp_path / "out")
    assert answer.code == 1
    assert "model.layers.1.self_attn.q_proj" in answer.sentence
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_is_there_is_replaced_only_when_told(here: Here, sound: Path, tmp_path: Path) -> None:
    words = ("awq", sound, *SMALL, "-o", tmp_path, "--no-logits")
    assert here(*words).code == 0
    before = hashes(tmp_path)
    (tmp_path / "model-AWQ" / "mine.txt").write_text("mine")
    refused = here(*words)
    assert refused.code == 1
    assert "--force" in refused.sentence
    assert [path.name for path in tmp_path.iterdir()] == ["model-AWQ"]
    assert (tmp_path / "model-AWQ" / "mine.txt").exists()
    assert here(*words, "--force").code == 0
    assert hashes(tmp_path) == before


def test_gguf_files_that_are_there_are_refused_before_the_calibration(here: Here, sound: Path, tmp_path: Path) -> None:
    (tmp_path / "model-GGUF").mkdir()
    (tmp_path / "model-GGUF" / "model-Q8_0.gguf").write_text("mine")
    answer = here("convert", sound, "-t", "awq", "-t", "q8_0", *SMALL, "-o", tmp_path)
    assert answer.code == 1
    assert "model-Q8_0.gguf already exists" in answer.sentence
    assert [path.name for path in tmp_path.iterdir()] == ["model-GGUF"]


def test_a_place_where_no_folder_can_be_made_is_named(here: Here, sound: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = here("awq", sound, *SMALL, "-o", tmp_path / "file" / "out")
    assert answer.code == 2
    assert f"-o {tmp_path / 'file' / 'out'}: {tmp_path / 'file'} is a file, not a folder" in answer.sentence
    (tmp_path / "model-AWQ").write_text("a file in the way")
    answer = here("awq", sound, *SMALL, "-o", tmp_path, "--force")
    assert answer.code == 1
    assert "is a file" in answer.sentence


def test_sources_that_are_no_checkpoint_are_one_sentence(here: Here, tmp_path: Path) -> None:
    answer = here("awq", "org/name", "-o", tmp_path, "--offline")
    assert answer.code == 1
    assert "org/name" in answer.sentence
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(64))
    answer = here("gptq", tmp_path / "x.gguf", "-o", tmp_path)
    assert answer.code == 1
    assert "x.gguf" in answer.sentence


def test_convert_without_an_importance_matrix_is_gguf(here: Here, sound: Path, tmp_path: Path) -> None:
    options = ("-t", "q2_k", "-t", "q8_0", "--pure", "--tensor-type", "ffn_down=q6_k", "--split-max-size", "90k")
    for preset, more in (("convert", ("--no-imatrix",)), ("gguf", ())):
        answer = here(preset, sound, *options, *more, "-o", tmp_path / preset, "--no-logits")
        assert answer.code == 0, answer.stderr
    assert len(hashes(tmp_path / "gguf")) > 2
    assert hashes(tmp_path / "convert") == hashes(tmp_path / "gguf")


@pytest.mark.parametrize(
    ("words", "calibrates"),
    [
        (("-t", "q8_0", "-t", "bf16", "-t", "mxfp4"), False),
        (("-t", "q8_0", "-t", "fp8"), False),
        (("-t", "q8_0", "-t", "q4_k_m"), True),
        (("-t", "q8_0", "--tensor-type", "ffn_down=q4_k"), True),
        (("-t", "q8_0", "--calibrate"), True),
        (("-t", "q8_0", "-t", "imatrix"), True),
    ],
)
def test_convert_calibrates_where_an_importance_matrix_changes_a_tensor(
    words: tuple[str, ...], calibrates: bool, here: Here, sound: Path, tmp_path: Path
) -> None:
    answer = here("convert", sound, *words, "--dry-run", "-o", tmp_path)
    assert answer.code == 0, answer.stderr
    assert ("calibrates on" in answer.stderr) == calibrates


@pytest.mark.parametrize("kind", ["f32", "q8_0", "mxfp4"])
def test_a_type_that_uses_no_importances_has_the_same_tensors_with_them(
    kind: str, here: Here, sound: Path, tmp_path: Path
) -> None:
    options = ("-t", kind, "--samples", "2", "--seq-len", "32", "--no-logits", "-o")
    assert here("convert", sound, *options, tmp_path / "with", "--calibrate").code == 0
    assert here("gguf", sound, "-t", kind, "--no-logits", "-o", tmp_path / "without").code == 0
    files = [GGUFReader(next((tmp_path / name).rglob("*.gguf"))) for name in ("with", "without")]
    data = [{tensor.name: bytes(tensor.data) for tensor in file.tensors} for file in files]
    assert data[0] == data[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("-t", "awq", "--damp", "0.1"), "--damp has no effect without -t gptq"),
        (("-t", "awq", "--asym"), "--sym/--asym has no effect without -t gptq"),
        (("-t", "awq", "--pure"), "--pure has no effect without a GGUF type"),
        (("-t", "gptq", "--tensor-type", "ffn=q8_0"), "--tensor-type has no effect without a GGUF type"),
        (("-t", "q8_0", "--skip", "down_proj"), "--skip has no effect without a folder type, such as -t awq or -t fp8"),
        (("-t", "q8_0", "--no-imatrix", "--samples", "8"), "--samples has no effect without --calibrate"),
        (("-t", "awq", "-t", "gptq", "--propagate", "quantized"), "--propagate quantized allows one calibrated type"),
        (("-t", "q8_0", "--preset", "tablet"), "preset 'tablet' does not exist"),
    ],
)
def test_an_option_that_cannot_apply_is_refused(
    words: tuple[str, ...], sentence: str, here: Here, sound: Path, tmp_path: Path
) -> None:
    answer = here("convert", sound, *words, "-o", tmp_path)
    assert answer.code == 2
    assert sentence in answer.sentence
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def one_core() -> Iterator[str]:
    """This thread on one core; its number."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield str(min(cores))
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.usefixtures("every_core")
@pytest.mark.parametrize("preset", ["gguf", "awq", "gptq", "imatrix", "convert"])
def test_pinned_to_one_core_every_command_plans_one_thread(
    preset: str, sound: Path, tmp_path: Path, one_core: str
) -> None:
    types = [("-t", kind) for kind in ("awq", "gptq", "imatrix", "q4_0")] if preset == "convert" else [()]
    for kind in types:
        more = SMALL if preset in ("awq", "gptq") else ("--group-size", "32") if kind[-1:] in PACKED else ()
        answer = quantkit(preset, sound, *kind, *more, "--dry-run", "--format", "json", cwd=tmp_path)
        assert answer.code == 0, answer.stderr
        assert json.loads(answer.stdout)["threads"] == 1


def test_a_process_that_is_pinned_to_one_core_plans_one_thread(sound: Path, tmp_path: Path) -> None:
    words = command("gguf", sound, "-t", "q4_0", "--dry-run", "--format", "json")
    pinned = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *words]
    done = subprocess.run(pinned, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout)["threads"] == 1


def test_requests_that_say_too_much_are_refused(here: Here, sound: Path, tmp_path: Path) -> None:
    answer = here("convert", sound, "-t", "q9_9", "-o", tmp_path)
    assert answer.code == 2
    assert "q9_9" in answer.sentence
    answer = here("awq", sound, "--propagate", "quantized", "-o", tmp_path)
    assert answer.code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_known_before_the_calibration(sound: Path, tmp_path: Path) -> None:
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this system gives no mount namespaces")
    script = f'mount -t tmpfs -o size=300k none "{tmp_path}" && "$@"; code=$?; ls "{tmp_path}"; exit $code'
    words = command("convert", sound, "-t", "awq", "-t", "q8_0", *SMALL, "-o", tmp_path)
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
        check=False,
    )
    assert done.returncode == 1
    assert "free" in Answer(1, done.stdout, done.stderr).sentence
    assert done.stdout.split() == []
