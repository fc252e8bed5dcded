"""`quantkit measure` as a user meets it: what it says and writes, kills, bad input."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from gguf import GGUFReader

from quantkit.journal import Journal
from quantkit.measurement.record_file import RecordFile
from tests.helpers.command import Answer, command, quantkit
from tests.helpers.forked import run_process, start_process
from tests.helpers.plots_drawn import every_plot
from tests.helpers.tiny import tiny_llama
from tests.helpers.tiny_tokenizers import CORPUS

SMALL = ("--ctx", "64", "--gpu-layers", "none")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint `model`, its GGUF files, AWQ and GPTQ folders, and texts."""
    folder = tmp_path_factory.mktemp("here")
    tiny_llama(folder / "model", variant="llama3", hidden=64, intermediate=96, layers=3)
    small = ("--samples", "8", "--seq-len", "32", "--raw", "--group-size", "32")
    types = ("-t", "f32", "-t", "q8_0", "-t", "awq", "-t", "gptq")
    made = quantkit("convert", "model", *types, *small, cwd=folder)
    assert made.code == 0, made.stderr
    (folder / "text.txt").write_text(CORPUS, "utf-8")
    (folder / "other.txt").write_text(CORPUS[::-1], "utf-8")
    return folder


def measure(here: Path, *words: str | Path, text: str = "text.txt") -> Answer:
    return quantkit("measure", *words, "--text", text, *SMALL, cwd=here)


def document(answer: Answer) -> dict:
    assert answer.code == 0, answer.stderr
    return json.loads(answer.stdout)


def quality(report: dict, label: str) -> dict:
    return next(model["quality"][0] for model in report["models"] if model["label"] == label)


def perplexity_ratio(report: dict, text: str, label: str) -> float:
    (model,) = (model for model in report["models"] if model["label"] == label)
    (figures,) = (figures for figures in model["quality"] if figures["text"] == text)
    return float(figures["perplexity_ratio"]["value"])


@pytest.fixture(scope="module")
def everything(here: Path) -> dict:
    words = ("model", "model-GGUF", "model-AWQ", "model-GPTQ", "--text", "other.txt", "-o", "all", "--format", "json")
    with every_plot():
        return document(measure(here, *words))


def test_every_format_stands_side_by_side_on_every_text(everything: dict) -> None:
    models = [(model["role"], model["kind"], model["label"]) for model in everything["models"]]
    assert models == [
        ("reference", "hf", "bf16"),
        ("candidate", "gguf", "f32"),
        ("candidate", "gguf", "q8_0"),
        ("candidate", "awq", "awq"),
        ("candidate", "gptq", "gptq"),
    ]
    assert [text["name"] for text in everything["texts"]] == ["other.txt", "text.txt"]
    for model in everything["models"]:
        assert [figures["text"] for figures in model["quality"]] == ["other.txt", "text.txt"]
        assert model["quality"][0]["perplexity"]["value"] != model["quality"][1]["perplexity"]["value"]


def test_two_engines_agree_on_the_same_weights(everything: dict) -> None:
    float32 = quality(everything, "f32")
    assert abs(float32["perplexity_ratio"]["value"] - 1) < 1e-3
    assert float32["top1"]["value"] > 0.97 and float32["kl"]["mean"] < 1e-4
    assert quality(everything, "awq")["kl"]["mean"] > 10 * float32["kl"]["mean"]


def test_a_report_is_written_and_nothing_unfinished_is_left(here: Path, everything: dict) -> None:
    written = json.loads((here / "all" / "report.json").read_text("utf-8"))
    assert written["models"] == everything["models"]
    assert {path.name for path in (here / "all").iterdir()} == {"report.json", "report.md", "report.html", "plots"}
    assert "q8_0" in (here / "all" / "report.md").read_text("utf-8")
    plots = {path.stem.partition("-")[0] for path in (here / "all" / "plots").iterdir()}
    assert len(plots) >= 3, plots


def test_people_get_a_table_that_fits_a_terminal(here: Path) -> None:
    answer = measure(here, "model", "model-GGUF", "model-GPTQ", "--chunks", "2", "-o", "table")
    assert answer.code == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[1].split() == ["model", "size", "bits", "perplexity", "change", "KL", "top-1"]
    rows = {line.split()[0]: line for line in lines[2:6]}
    assert rows.keys() == {"bf16", "f32", "q8_0", "gptq"} and max(map(len, lines[:6])) <= 80
    assert "%" in rows["gptq"] and "reference" in rows["bf16"]
    assert lines[0].strip() == "text.txt: 2 chunks, 62 tokens scored"
    assert str(Path("table") / "report.html") in answer.stdout


def test_a_reference_alone_is_measured_too(here: Path) -> None:
    report = document(measure(here, "model-GGUF/model-Q8_0.gguf", "--format", "json", "-o", "alone"))
    assert [set(model["quality"][0]) for model in report["models"]] == [{"text", "perplexity"}]


def test_a_gguf_without_its_source_is_measured_by_its_own_tokens(here: Path, everything: dict) -> None:
    words = ("model-GGUF/model-F32.gguf", "model-GGUF/model-Q8_0.gguf", "--format", "json", "-o", "ggufs")
    report = document(measure(here, *words, text="other.txt"))
    same = quality(everything, "q8_0")["perplexity"]["value"]
    assert quality(report, "q8_0")["perplexity"]["value"] == pytest.approx(same, rel=1e-6)


def test_texts_of_one_name_are_told_apart(here: Path, everything: dict) -> None:
    (here / "second").mkdir()
    shutil.copy(here / "other.txt", here / "second" / "text.txt")
    words = ("model-GGUF/model-Q8_0.gguf", "--text", "second/text.txt", "--format", "json", "-o", "namesakes")
    report = document(measure(here, *words))
    assert [text["name"] for text in report["texts"]] == ["text.txt", "text.txt (2)"]
    assert [figures["text"] for figures in report["models"][0]["quality"]] == ["text.txt", "text.txt (2)"]
    values = [text["sha256"] for text in report["texts"]]
    assert values[0] != values[1]
    assert "text.txt (2)" in (here / "namesakes" / "report.md").read_text("utf-8")


def test_any_shard_stands_for_a_split_file(here: Path, everything: dict) -> None:
    made = quantkit("gguf", "model", "-t", "q8_0", "--split-max-size", "100k", "-o", "split", "--no-logits", cwd=here)
    assert made.code == 0, made.stderr
    last = sorted((here / "split" / "model-GGUF").glob("*.gguf"))[-1]
    assert not last.name.endswith("00001-of-00001.gguf")
    report = document(measure(here, last, "--format", "json", "-o", "shard", text="other.txt"))
    same = quality(everything, "q8_0")["perplexity"]["value"]
    assert quality(report, "q8_0")["perplexity"]["value"] == pytest.approx(same, rel=1e-6)


@pytest.mark.parametrize(
    "limit",
    [
        ("--max-delta", "0.01%"),
        pytest.param(("--max-kl", "0.0001"), marks=pytest.mark.full),
        pytest.param(("--min-top1", "99.9%"), marks=pytest.mark.full),
    ],
)
def test_a_limit_that_is_not_kept_exits_3_and_the_report_says_so(
    here: Path, everything: dict, limit: tuple[str, str]
) -> None:
    # rounding a random model lowers the perplexity of one text and raises that of another
    text, label = max(
        ((figures["text"], model["label"]) for model in everything["models"][3:] for figures in model["quality"]),
        key=lambda pair: perplexity_ratio(everything, *pair),
    )
    candidate = f"model-{label.upper()}"
    answer = measure(here, "model", candidate, *limit, "-o", "flagged", text=text)
    assert answer.code == 3
    assert f"{candidate}: on {text} its" in answer.sentence
    report = json.loads((here / "flagged" / "report.json").read_text("utf-8"))
    assert len(report["flags"]) == 1 and report["flags"][0] in answer.sentence
    assert measure(here, "model", "model-GGUF/model-F32.gguf", *limit, "-o", "kept").code in (
        0,
        3 * ("top1" in limit[0]),
    )


@pytest.mark.full
@pytest.mark.parametrize("attempts", [2, 8])
def test_killed_at_any_moment_it_goes_on_to_the_same_figures(attempts: int, here: Path, everything: dict) -> None:
    words = command("measure", "model", "model-GGUF", "model-AWQ", "model-GPTQ", "--text", "other.txt")
    words += ["--text", "text.txt", *SMALL, "-o", f"killed-{attempts}", "--format", "json"]
    rng, kills = random.Random(5), 0
    for _ in range(attempts):
        running = start_process(words, cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.6, 3.5))
        kills += running.poll() is None
        running.send_signal(signal.SIGKILL)
        running.wait()
    answer = run_process(words, cwd=here, timeout=240)
    assert kills and answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout)
    assert [model["quality"] for model in report["models"]] == [model["quality"] for model in everything["models"]]


def test_an_unfinished_measurement_of_something_else_is_not_thrown_away_unasked(here: Path) -> None:
    work = here / "mine" / "measure.partial"
    work.mkdir(parents=True)
    Journal(work / "journal", "other", [], force=False).close()
    (work / "model-0.records").write_bytes(b"x")
    refused = measure(here, "model", "-o", "mine")
    assert refused.code == 1 and "--force" in refused.sentence
    assert (work / "model-0.records").exists()
    assert measure(here, "model", "-o", "mine", "--force").code == 0


def test_an_unfinished_measurement_is_refused_with_the_options_that_differ(here: Path) -> None:
    stopped = patch("quantkit.measurement.run.Comparison.run", side_effect=KeyboardInterrupt)
    with stopped, pytest.raises(KeyboardInterrupt):
        measure(here, "model", "-o", "stopped")
    refused = measure(here, "model", "model-GGUF/model-Q8_0.gguf", "-o", "stopped", "--chunks", "2")
    changes = "the candidates not given (now model-Q8_0) and --chunks not given (now 2)"
    assert refused.code == 1 and f"holds an unfinished run with {changes}; finish it" in refused.sentence


BAD = {
    "no text": (["model"], "measuring needs a text"),
    "no such text": (["model", "--text", "nowhere.txt"], "nowhere.txt not found"),
    "an empty text": (["model", "--text", "empty.txt"], "empty.txt is empty"),
    "a binary text": (["model", "--text", "model-GGUF/model-Q8_0.gguf"], "is not text"),
    "a text shorter than a window": (["model", "--text", "short.txt"], "short.txt has 4 tokens, but one window needs"),
    "no such model": (["nowhere", "--text", "text.txt"], "nowhere"),
    "no such file": (["nowhere.gguf", "--text", "text.txt"], "nowhere.gguf"),
    "a folder of nothing": (["empty", "--text", "text.txt"], "neither a config.json nor GGUF files"),
    "a file that is no GGUF": (["text.txt", "--text", "text.txt"], "text.txt is not a sound GGUF file"),
    "another vocabulary": (["model", "llama", "--text", "text.txt"], "measure models of one vocabulary"),
    "another vocabulary of that size": (["model", "same-size.gguf", "--text", "text.txt"], "has another vocabulary"),
    "a cut GGUF": (["model", "cut.gguf", "--text", "text.txt"], "cut.gguf"),
    "a GGUF that llama.cpp refuses": (["model", "strange.gguf", "--text", "text.txt"], "strange.gguf: llama.cpp"),
    "NaN": (["model", "nan.gguf", "--text", "text.txt"], "not finite (NaN or infinite) in chunk 1 of text.txt"),
    "a limit that is no number": (["model", "model-GGUF", "--text", "text.txt", "--max-delta", "5 percent"], "as 5%"),
    "a limit below zero": (
        ["model", "model-GGUF", "--text", "text.txt", "--max-delta=-5%"],
        "is not a limit of 0 or more",
    ),
    "a share beyond one": (["model", "model-GGUF", "--text", "text.txt", "--min-top1", "130%"], "not between 0 and 1"),
    "a limit and nothing to judge": (["model", "--text", "text.txt", "--max-kl", "1"], "name one after the reference"),
    "layers that are no list": (["model", "--text", "text.txt", "--gpu-layers", "8;16"], "0,8,16,all"),
    "an output that is a file": (["model", "--text", "text.txt", "-o", "text.txt"], "text.txt"),
}


@pytest.fixture(scope="module")
def damaged(here: Path) -> Path:
    (here / "empty").mkdir()
    (here / "empty.txt").write_text(" \n")
    (here / "short.txt").write_text("one two")
    tiny_llama(here / "llama", variant="smollm2")
    sound = (here / "model-GGUF" / "model-F32.gguf").read_bytes()
    (here / "cut.gguf").write_bytes(sound[: len(sound) // 2])
    (here / "strange.gguf").write_bytes(
        sound.replace(b"llama.attention.head_count\x04", b"llama.attention.head_wrong\x04")
    )
    for name, change in (("nan", "output_norm.weight"), ("same-size", "")):
        (here / f"{name}.gguf").write_bytes(sound)
        reader = GGUFReader(here / f"{name}.gguf", "r+")
        if change:
            next(tensor for tensor in reader.tensors if tensor.name == change).data[3] = np.nan
        else:
            tokens = reader.fields["tokenizer.ggml.tokens"]
            long = next(part for part in tokens.data if len(tokens.parts[part]) > 3)
            tokens.parts[long][:] = tokens.parts[long][::-1].copy()
        reader.data.flush()
    return here


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(damaged: Path, case: str) -> None:
    words, sentence = BAD[case]
    answer = quantkit("measure", *words, *(() if "--gpu-layers" in words else SMALL), cwd=damaged)
    assert answer.code in (1, 2)
    assert sentence in answer.sentence
    shutil.rmtree(damaged / "model-report", ignore_errors=True)


def test_a_perplexity_above_the_vocabulary_is_warned_about(tmp_path: Path) -> None:
    """The weights are random, so each model is worse than equal probabilities."""
    folder = tiny_llama(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    answer = quantkit("measure", folder, "--text", text, "--ctx", "64", "--chunks", "1", "-o", tmp_path / "report")
    assert answer.code == 0, answer.stderr
    assert "above its vocabulary of 768 tokens" in answer.stderr


LOST = {
    "nothing": lambda work: None,
    "the journal": lambda work: (work / "journal").write_bytes(b""),
    "the journal's last line": lambda work: _zero(work / "journal", -20),
    "the last window": lambda work: _zero(work / "model-0.records", -20),
    "the first window": lambda work: _zero(work / "model-1.records", 0, 100),
    "the end of a file": lambda work: os.truncate(work / "model-0.records", 1000),
    "a file": lambda work: (work / "model-1.records").unlink(),
    "the states": lambda work: _zero(work / "model-0" / "scored", 0, 4096),
    "the journal of the states": lambda work: _zero(work / "model-0" / "journal", -30),
}


def _zero(path: Path, start: int, size: int | None = None) -> None:
    data = path.read_bytes()
    start %= len(data)
    stop = len(data) if size is None else start + size
    path.write_bytes(data[:start] + bytes(stop - start) + data[stop:])


POWER = ("model", "model-AWQ", "--chunks", "3", "-o", "power", "--force", "--format", "json")


@pytest.fixture(scope="module")
def undisturbed(here: Path) -> list[dict]:
    return document(measure(here, *POWER))["models"]


_QUICK = ("nothing", "the journal", "the last window", "the states")


@pytest.mark.parametrize(
    "lost", [pytest.param(lost, marks=[] if lost in _QUICK else [pytest.mark.full]) for lost in LOST]
)
def test_what_a_power_cut_lost_is_measured_again_to_the_same_figures(
    here: Path, undisturbed: list[dict], monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The machine has started anew meanwhile, and files have zeros where bytes had not reached the disk."""
    kept, keep = [], RecordFile.keep

    def cut(file: RecordFile, window: int, values: np.ndarray) -> None:
        keep(file, window, values)
        kept.append(window)
        if len(kept) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RecordFile, "keep", cut)
        with pytest.raises(KeyboardInterrupt):
            measure(here, *POWER)
    LOST[lost](here / "power" / "measure.partial")
    monkeypatch.setattr("quantkit.system.processor.boot", lambda: "another start")
    monkeypatch.setattr(RecordFile, "keep", lambda *call: kept.append(call[1]) or keep(*call))
    models = document(measure(here, *(word for word in POWER if word != "--force")))["models"]
    assert [model["quality"] for model in models] == [model["quality"] for model in undisturbed]
    if lost == "nothing":
        assert sorted(kept) == [0, 0, 1, 1, 2, 2], "a window was measured twice"
