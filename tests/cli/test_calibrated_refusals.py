"""`quantkit awq`, `gptq` and `convert`: bad input, options without an effect, outputs that exist, a full disk."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.calibrated import SMALL, hashes
from tests.helpers.command import Answer, command, quantkit_here


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
def test_bad_input_is_one_sentence_and_leaves_nothing(name: str, narrow: Path, tmp_path: Path) -> None:
    code, sentence, words = REFUSED[name]
    answer = quantkit_here("gptq", narrow, *SMALL, "-o", tmp_path / "out", *words(tmp_path))
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
    method: str, tensor: str, narrow: Path, tmp_path: Path
) -> None:
    source = damaged(narrow, tmp_path / "model", f"model.layers.1.{tensor}.weight", nan)
    answer = quantkit_here(method, source, *SMALL, "-o", tmp_path / "out")
    assert answer.code == 1
    assert "model.layers.1" in answer.sentence
    assert "not finite" in answer.sentence
    assert list((tmp_path / "out").iterdir()) == []


def test_an_input_that_is_always_zero_is_named(narrow: Path, tmp_path: Path) -> None:
    source = damaged(narrow, tmp_path / "model", "model.layers.1.input_layernorm.weight", zero)
    answer = quantkit_here("gptq", source, *SMALL, "-o", tmp_path / "out")
    assert answer.code == 1
    assert "model.layers.1.self_attn.q_proj" in answer.sentence
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_is_there_is_replaced_only_when_told(narrow: Path, tmp_path: Path) -> None:
    words = ("awq", narrow, *SMALL, "-o", tmp_path, "--no-logits")
    assert quantkit_here(*words).code == 0
    before = hashes(tmp_path)
    (tmp_path / "model-AWQ" / "mine.txt").write_text("mine")
    refused = quantkit_here(*words)
    assert refused.code == 1
    assert "--force" in refused.sentence
    assert [path.name for path in tmp_path.iterdir()] == ["model-AWQ"]
    assert (tmp_path / "model-AWQ" / "mine.txt").exists()
    assert quantkit_here(*words, "--force").code == 0
    assert hashes(tmp_path) == before


def test_gguf_files_that_are_there_are_refused_before_the_calibration(narrow: Path, tmp_path: Path) -> None:
    (tmp_path / "model-GGUF").mkdir()
    (tmp_path / "model-GGUF" / "model-Q8_0.gguf").write_text("mine")
    answer = quantkit_here("convert", narrow, "-t", "awq", "-t", "q8_0", *SMALL, "-o", tmp_path)
    assert answer.code == 1
    assert "model-Q8_0.gguf already exists" in answer.sentence
    assert [path.name for path in tmp_path.iterdir()] == ["model-GGUF"]


def test_a_place_where_no_folder_can_be_made_is_named(narrow: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = quantkit_here("awq", narrow, *SMALL, "-o", tmp_path / "file" / "out")
    assert answer.code == 2
    assert f"-o {tmp_path / 'file' / 'out'}: {tmp_path / 'file'} is a file, not a folder" in answer.sentence
    (tmp_path / "model-AWQ").write_text("a file in the way")
    answer = quantkit_here("awq", narrow, *SMALL, "-o", tmp_path, "--force")
    assert answer.code == 1
    assert "is a file" in answer.sentence


def test_sources_that_are_no_checkpoint_are_one_sentence(tmp_path: Path) -> None:
    answer = quantkit_here("awq", "org/name", "-o", tmp_path, "--offline")
    assert answer.code == 1
    assert "org/name" in answer.sentence
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(64))
    answer = quantkit_here("gptq", tmp_path / "x.gguf", "-o", tmp_path)
    assert answer.code == 1
    assert "x.gguf" in answer.sentence


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
    words: tuple[str, ...], sentence: str, narrow: Path, tmp_path: Path
) -> None:
    answer = quantkit_here("convert", narrow, *words, "-o", tmp_path)
    assert answer.code == 2
    assert sentence in answer.sentence
    assert list(tmp_path.iterdir()) == []


def test_requests_that_say_too_much_are_refused(narrow: Path, tmp_path: Path) -> None:
    answer = quantkit_here("convert", narrow, "-t", "q9_9", "-o", tmp_path)
    assert answer.code == 2
    assert "q9_9" in answer.sentence
    answer = quantkit_here("awq", narrow, "--propagate", "quantized", "-o", tmp_path)
    assert answer.code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_known_before_the_calibration(narrow: Path, tmp_path: Path) -> None:
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this system gives no mount namespaces")
    script = f'mount -t tmpfs -o size=300k none "{tmp_path}" && "$@"; code=$?; ls "{tmp_path}"; exit $code'
    words = command("convert", narrow, "-t", "awq", "-t", "q8_0", *SMALL, "-o", tmp_path)
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
