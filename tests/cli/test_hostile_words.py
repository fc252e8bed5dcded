"""Words and names that would control the terminal, or that are not text, never reach it as they are."""

import gzip
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from quantkit.cli.options import Format
from quantkit.cli.output import Out
from tests.helpers.command import quantkit, quantkit_process
from tests.helpers.tiny import tiny_llama

ESCAPE = "\x1b[2J\x9b31m\u202e"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source") / "model", hidden=64, intermediate=96)


@pytest.fixture(scope="module")
def outputs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    answer = quantkit("gguf", model, "-t", "q8_0", "-o", out, "--no-logits")
    assert answer.code == 0, answer.stderr
    return out / "model-GGUF"


def is_plain(text: str) -> bool:
    return text.replace("\n", "").isprintable()


@pytest.mark.parametrize("form", ["human", "json"])
def test_a_name_with_control_characters_is_printed_escaped(model: Path, tmp_path: Path, form: str) -> None:
    folder = tmp_path / f"m{ESCAPE}"
    shutil.copytree(model, folder)
    for words in (("inspect", folder), ("plan", folder, "--ram", "8G", "--vram", "0"), ("gguf", folder, "--dry-run")):
        answer = quantkit(*words, "--format", form, cwd=tmp_path)
        assert is_plain(answer.stdout) and is_plain(answer.stderr), (words, answer)
    if form == "json":
        assert json.loads(quantkit("inspect", folder, "--format", "json").stdout)["name"] == folder.name


def test_square_brackets_and_escapes_in_a_table_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    out = Out(Format.human)
    out.table([("name", "left")], [[f"a[/red]b{ESCAPE}"], ["[bold]c"]], title=f"[red]t{ESCAPE}")
    shown = capsys.readouterr().out
    assert is_plain(shown)
    assert "[red]t" in shown and "a[/red]b" in shown and "[bold]c" in shown and r"\x1b[2J\x9b31m\u202e" in shown


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_not_utf_8_is_refused_in_one_sentence(model: Path, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/m\xff"
    shutil.copytree(model, os.fsdecode(folder))
    answer = quantkit_process("gguf", os.fsdecode(b"m\xff"), cwd=tmp_path)
    assert answer.code == 2 and r"m\udcff is not UTF-8 text; write UTF-8, or rename the file" in answer.sentence
    here = quantkit_process("gguf", ".", "-o", tmp_path / "out", cwd=Path(os.fsdecode(folder)))
    assert here.code == 1 and "is not UTF-8 text; rename the folder" in here.sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["gguf", "plan", "inspect", "measure", "imatrix"])
def test_the_home_of_an_unknown_user_is_one_sentence(name: str) -> None:
    more = ("--text", "x.txt") if name == "measure" else ()
    answer = quantkit(name, "~no-such-user/x", *more)
    assert answer.code == 2 and "the home folder of ~no-such-user/x is not found" in answer.sentence


BAD_RECORDS = {
    "NaN": '{"format": "quantkit-origin", "version": 1, "outputs": {"m": {"bits_per_weight": NaN}}}',
    "a lone surrogate": '{"format": "quantkit-origin", "version": 1, "outputs": {"m": {"type": "\\ud800"}}}',
    "1e400": '{"format": "quantkit-origin", "version": 1, "outputs": {"m": {"bits_per_weight": 1e400}}}',
    "nested": "[" * 100_000,
    "another type": '{"format": "quantkit-origin", "version": 1, "outputs": {"model-Q8_0": {"checks": 5}}}',
    "another shape": '{"format": "quantkit-origin", "version": 1, "outputs": {"model-Q8_0": {"files": {"a": 5}}}}',
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_a_damaged_quantkit_json_is_told_before_the_pass_and_kept_as_bak(
    model: Path, outputs: Path, tmp_path: Path, case: str
) -> None:
    folder = tmp_path / "model-GGUF"
    shutil.copytree(outputs, folder)
    (folder / "quantkit.json").write_text(BAD_RECORDS[case])
    dry = quantkit("gguf", model, "-t", "f16", "-o", tmp_path, "--dry-run")
    assert dry.code == 0 and "the conversion renames it to quantkit.json.bak" in dry.stderr.replace("\n", " ")
    refused = quantkit("card", folder)
    assert refused.code == 1 and "quantkit.json" in refused.sentence and "move the file away" in refused.sentence
    shown = quantkit("inspect", folder)
    assert shown.code == 0 and "move the file away" in " ".join(shown.stdout.split())
    answer = quantkit("gguf", model, "-t", "f16", "-o", tmp_path, "--no-logits")
    assert answer.code == 0, answer.stderr
    assert (folder / "quantkit.json.bak").read_text() == BAD_RECORDS[case]
    assert set(json.loads((folder / "quantkit.json").read_text())["outputs"]) == {"model-F16"}


def test_a_number_beyond_float_in_config_json_is_one_sentence(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    text = json.dumps({**config, "rms_norm_eps": "@"}).replace('"@"', "1e400")
    (folder / "config.json").write_text(text)
    for words in (("gguf", "-t", "q8_0"), ("convert", "-t", "awq"), ("plan",), ("imatrix",)):
        answer = quantkit(words[0], folder, *words[1:], cwd=tmp_path)
        assert answer.code == 1 and "rms_norm_eps" in answer.sentence, (words, answer.stderr)
    assert quantkit("inspect", folder).code == 0
    assert not list(tmp_path.glob("*-GGUF"))


def test_a_damaged_gz_as_calibration_text_is_one_sentence(model: Path, tmp_path: Path) -> None:

    whole = gzip.compress(("".join(map(chr, random.Random(0).choices(range(32, 126), k=4000)))).encode() * 3)
    for number, data in enumerate((whole[:200], whole[:40] + b"\xff" * 40 + whole[80:], whole[:-6] + b"\0" * 6)):
        (tmp_path / f"{number}.jsonl.gz").write_bytes(data)
        answer = quantkit("imatrix", model, "--calibration", tmp_path / f"{number}.jsonl.gz", cwd=tmp_path)
        assert answer.code == 1 and f"{number}.jsonl.gz" in answer.sentence, answer.stderr
