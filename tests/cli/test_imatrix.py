"""`quantkit imatrix` and `quantkit gguf --calibrate`: one matrix either way, read by llama.cpp's own tools."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from quantkit.imatrix.file import load_imatrix
from tests.helpers.command import quantkit
from tests.helpers.peer import peer_converter
from tests.helpers.tiny import tiny_llama

CUT = ("--samples", "9", "--seq-len", "48")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source") / "mix", variant="mixtral", intermediate=256)


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "im.gguf"
    answer = quantkit("imatrix", source, "-o", path, *CUT)
    assert answer.code == 0, answer.stderr
    assert "16 tensors over 432 tokens" in answer.stdout and str(path) in answer.stdout.replace("\n", "")
    assert [file.name for file in path.parent.iterdir()] == ["im.gguf"]
    return path


def tensors(path: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}


def test_the_file_weighs_every_matrix_of_every_layer(made: Path) -> None:
    imatrix = load_imatrix(made)
    linears = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp")
    experts = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    assert imatrix.values.keys() == {f"blk.{n}.{name}.weight" for n in range(2) for name in (*linears, *experts)}
    assert (imatrix.datasets, imatrix.chunks, imatrix.chunk_size) == (["quantkit's default text"], 9, 48)
    counts = {tensor.name: tensor.data.ravel() for tensor in gguf.GGUFReader(made).tensors if "counts" in tensor.name}
    assert counts["blk.0.attn_q.weight.counts"].tolist() == [432]
    assert counts["blk.1.ffn_up_exps.weight.counts"].sum() == 2 * 432  # each token goes to two of four experts


def test_calibrating_a_conversion_gives_the_tensors_that_the_file_gives(
    source: Path, made: Path, tmp_path: Path
) -> None:
    types = ("-t", "q2_k", "-t", "iq2_xxs", "--no-logits")
    by_file = quantkit("gguf", source, *types, "--imatrix", made, "-o", tmp_path / "file")
    at_once = quantkit("gguf", source, *types, "--calibrate", *CUT, "-o", tmp_path / "once")
    assert (by_file.code, at_once.code) == (0, 0), by_file.stderr + at_once.stderr
    for label in ("Q2_K", "IQ2_XXS"):
        name = f"mix-GGUF/mix-{label}.gguf"
        assert tensors(tmp_path / "once" / name) == tensors(tmp_path / "file" / name)
    assert sorted(path.name for path in (tmp_path / "once").iterdir()) == ["mix-GGUF"]
    record = json.loads((tmp_path / "once" / "mix-GGUF" / "quantkit.json").read_text())
    text = json.dumps(record)
    assert "quantkit's default text, calibrated here" in text and '"tokens_per_sample": 48' in text


def test_the_matrix_changes_what_is_written(source: Path, made: Path, tmp_path: Path) -> None:
    for folder, more in (("with", ("--imatrix", made)), ("without", ())):
        assert quantkit("gguf", source, "-t", "q4_0", "--no-logits", *more, "-o", tmp_path / folder).code == 0
    both = [tensors(tmp_path / folder / "mix-GGUF" / "mix-Q4_0.gguf") for folder in ("with", "without")]
    assert both[0].keys() == both[1].keys()
    assert both[0]["blk.0.attn_q.weight"] != both[1]["blk.0.attn_q.weight"]


def test_json_is_one_document_and_a_dry_run_writes_nothing(source: Path, tmp_path: Path) -> None:
    dry = quantkit("imatrix", source, *CUT, "--dry-run", "--format", "json", cwd=tmp_path)
    document = json.loads(dry.stdout)
    assert (document["dry_run"], document["outputs"][0]["entries"], list(tmp_path.iterdir())) == (True, 16, [])
    text = tmp_path / "short.txt"
    text.write_text("Nothing but these words. " * 40)
    wet = quantkit(
        "imatrix", source, "--calibration", text, "--samples", "1", "--seq-len", "2", "--format", "json", cwd=tmp_path
    )
    assert wet.code == 0, wet.stderr
    document = json.loads(wet.stdout)
    assert document["calibration"]["text"] == "short.txt"
    unseen = document["outputs"][0]["experts_without_tokens"]
    # two tokens reach four experts of four only if they agree in nothing: the layer where they do is told
    counts = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "mix-imatrix.gguf").tensors}
    for name, number in unseen.items():
        assert int((counts[f"{name}.counts"] == 0).sum()) == number > 0
        assert "belong to experts that received no token" in " ".join(wet.stderr.split())


def test_the_matrix_of_several_texts_lists_them_and_is_the_sum_of_theirs(source: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("Nothing but these words. " * 200)
    default, own = ("--calibration", "default"), ("--calibration", "words.txt")
    for name, words in (("both", (*default, *own, "--samples", "17")), ("a", CUT), ("b", (*own, "--samples", "8"))):
        answer = quantkit("imatrix", source, *words, "--seq-len", "48", "-o", f"{name}.gguf", cwd=tmp_path)
        assert answer.code == 0, answer.stderr
    both = load_imatrix(tmp_path / "both.gguf")
    assert (both.datasets, both.chunks) == (["quantkit's default text", "words.txt"], 17)
    sums = [
        {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors}
        for name in ("both", "a", "b")
    ]
    for name, expected in sums[0].items():
        assert np.allclose(sums[1][name] + sums[2][name], expected, rtol=1e-5), name
    page = quantkit("inspect", tmp_path / "both.gguf").stdout
    assert "of quantkit's default text, words.txt" in " ".join(page.split())


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (("--calibration", "gone.txt"), 1, "gone.txt not found"),
        (("--calibration", "empty.txt"), 1, "empty.txt is empty"),
        (("--calibration", "picture.png"), 1, "picture.png is not"),
        (("--calibration", "broken.jsonl"), 1, "line 2 of broken.jsonl is not valid JSON"),
        (("--calibration", "few.txt"), 1, "tokens, but 128 samples of 512 tokens need"),
        (("--chat", "--calibration", "few.txt"), 1, "has no conversations"),
        (("--calibration", "default", "--calibration", "default"), 1, "calibration text 'default' is listed twice"),
        (("--calibration", "default", "--calibration", "gone.txt"), 1, "gone.txt not found"),
        (("-o", "folder"), 2, "folder is a folder"),
        (("-o", "there.gguf", *CUT), 1, "there.gguf already exists; add --force"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    source: Path, tmp_path: Path, words: tuple[str, ...], code: int, expected: str
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "few.txt").write_text("A few words.\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    (tmp_path / "broken.jsonl").write_text('{"text": "x"}\n{"text": \n')
    (tmp_path / "there.gguf").write_text("mine")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    answer = quantkit("imatrix", source, *words, cwd=tmp_path)
    assert answer.code == code and expected in " ".join(answer.sentence.split())
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "there.gguf").read_text() == "mine"


def test_gguf_takes_one_matrix(source: Path, made: Path, tmp_path: Path) -> None:
    both = quantkit("gguf", source, "--imatrix", made, "--calibrate", "-o", tmp_path)
    assert both.code == 2 and "leave one out" in both.sentence


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_llama_quantize_reads_the_file_and_writes_the_same_tensors(source: Path, made: Path, tmp_path: Path) -> None:
    assert quantkit("gguf", source, "-t", "bf16", "--no-logits", "-o", tmp_path).code == 0
    answer = quantkit("gguf", source, "-t", "q2_k", "--no-logits", "--imatrix", made, "-o", tmp_path)
    assert answer.code == 0, answer.stderr
    theirs = tmp_path / "theirs.gguf"
    peer_converter().quantize(tmp_path / "mix-GGUF" / "mix-BF16.gguf", theirs, 10, imatrix=made)
    assert tensors(tmp_path / "mix-GGUF" / "mix-Q2_K.gguf") == tensors(theirs)
    keys = gguf.GGUFReader(theirs).fields
    assert keys["quantize.imatrix.entries_count"].contents() == 16
    assert np.asarray(keys["quantize.imatrix.dataset"].contents()) == "quantkit's default text"
