"""A GGUF of a given size: it is not larger, its types follow what their errors cost, and it is the same each time."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gguf import GGUFReader

from quantkit.gguf.blocks import FORMATS
from quantkit.gguf.mix_rules import NEEDS_IMATRIX
from tests.families.expected import write_checkpoint
from tests.helpers.command import quantkit
from tests.helpers.forked import start_process
from tests.helpers.tiny import tiny_llama

CUT = ("--samples", "8", "--seq-len", "64")
BITS = "7"
"""Above the types of 2 and 3 bits, whose search tables take ggml seconds in every new process."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source") / "model", variant="llama3")


@pytest.fixture(scope="module")
def plain(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of BITS bits for each weight, made with one thread."""
    out = tmp_path_factory.mktemp("plain")
    answer = quantkit("gguf", source, "--target-bpw", BITS, *CUT, "--no-logits", "--threads", "1", "-o", out)
    assert answer.code == 0, answer.stderr
    return written(out)


def test_inspect_names_the_type_after_the_bits(plain: Path) -> None:
    """The header can only state a similar type, such as that of a q4_k_m beside it."""
    answer = quantkit("inspect", plain, "--format", "json")
    assert json.loads(answer.stdout)["type"] == plain.stem.rpartition("-")[2].lower()


def types_of(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}


def written(folder: Path) -> Path:
    (path,) = folder.glob("*/*BPW.gguf")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def killed(out: Path, words: list[str]) -> None:
    """Run `quantkit gguf` and kill it once the types are chosen."""
    command = [sys.executable, "-m", "quantkit", "gguf", *words, "-o", str(out)]
    running = start_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and not (out / "model-conversion.partial" / "types.json").exists():
        time.sleep(0.002)
    if running.poll() is None:
        os.kill(running.pid, signal.SIGKILL)
    running.wait()


def test_the_file_is_just_below_its_size_and_passes_every_check(source: Path, tmp_path: Path) -> None:
    answer = quantkit("convert", source, "-t", "q4_0", "--target-size", "2.1M", *CUT, "-o", tmp_path)
    assert answer.code == 0, answer.stderr
    path = written(tmp_path)
    # the unit is 10^6 bytes; the smallest step between types of this model is below 40 kB
    assert 2_060_000 < path.stat().st_size <= 2_100_000
    assert (tmp_path / "model-GGUF" / "model-Q4_0.gguf").exists()
    record = json.loads((path.parent / "quantkit.json").read_text())["outputs"][path.stem]
    tensors = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert record["target"]["types"] == tensors
    assert len(set(tensors.values())) > 2
    assert all(value >= 0 for value in record["target"]["kl_divergence_of_groups"].values())
    assert {check["status"] for check in record["checks"]} == {"passed"}


# below 4 bits ggml searches its grids for seconds in each new process
@pytest.mark.parametrize("bits", [pytest.param(3.0, marks=pytest.mark.full), 4.5, 6.0])
def test_bits_for_each_weight_are_those_asked_for(bits: float, source: Path, tmp_path: Path) -> None:
    words = ("--target-bpw", str(bits), *CUT, "-o", tmp_path, "--format", "json", "--no-logits")
    answer = quantkit("gguf", source, *words)
    assert answer.code == 0, answer.stderr
    (output,) = json.loads(answer.stdout)["outputs"]
    assert bits - 0.12 < output["bits_per_weight"] <= bits
    assert output["type"] == f"{bits:.2f}bpw"
    reader = GGUFReader(written(tmp_path))
    embedding = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    assert embedding.tensor_type not in NEEDS_IMATRIX  # no importances exist for it


def test_options_of_the_user_hold(source: Path, tmp_path: Path) -> None:
    words = ("--tensor-type", "attn_v=f16", "--embedding-type", "q8_0", "--target-bpw", "6")
    answer = quantkit("gguf", source, *words, *CUT, "-o", tmp_path, "--no-logits")
    assert answer.code == 0, answer.stderr
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(written(tmp_path)).tensors}
    assert types["token_embd.weight"] == "Q8_0"
    assert {kind for name, kind in types.items() if "attn_v" in name} == {"F16"}


@pytest.mark.parametrize("model", ["qwen2moe-fused-no-biases", "gpt2", "deepseek-v2", "phi-4k"])
def test_other_architectures_get_a_file_of_a_given_size(model: str, tmp_path: Path) -> None:
    source = write_checkpoint(model, tmp_path / "model")
    answer = quantkit("gguf", source, "--target-bpw", "9", *CUT, "-o", tmp_path, "--format", "json")
    assert answer.code == 0, answer.stderr
    (output,) = json.loads(answer.stdout)["outputs"]
    assert 7 < output["bits_per_weight"] <= 9
    assert {check["status"] for check in output["checks"]} <= {"passed", "skipped"}


@pytest.mark.usefixtures("blas_of_many_threads")
def test_the_bytes_do_not_depend_on_threads_or_on_a_kill(source: Path, plain: Path, tmp_path: Path) -> None:
    words = [str(source), "--target-bpw", BITS, *CUT, "--no-logits"]
    assert quantkit("gguf", *words, "--threads", "3", "-o", tmp_path / "3").code == 0
    assert sha256(written(tmp_path / "3")) == sha256(plain)
    out = tmp_path / "killed"
    killed(out, words)
    assert quantkit("gguf", *words, "-o", out).code == 0
    assert sha256(written(out)) == sha256(plain)
    assert not (out / "model-conversion.partial").exists()


FEEDBACK = ("--target-bpw", BITS, *CUT, "--no-logits", "--solver", "feedback")


@pytest.fixture(scope="module")
def feedback(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of BITS bits for each weight, rounded with error feedback."""
    out = tmp_path_factory.mktemp("feedback")
    answer = quantkit("gguf", source, *FEEDBACK, "-o", out)
    assert answer.code == 0, answer.stderr
    return written(out)


def test_error_feedback_rounds_to_the_chosen_types(plain: Path, feedback: Path) -> None:
    with_levels = {kind.name for kind in FORMATS}
    without, before = (
        {name for name, kind in types_of(path).items() if kind not in with_levels and name.startswith("blk.")}
        for path in (feedback, plain)
    )
    assert types_of(plain).keys() == types_of(feedback).keys()
    assert without <= before  # feedback gains nothing in a type without levels
    assert sha256(plain) != sha256(feedback)


@pytest.mark.full
def test_error_feedback_in_the_chosen_types_resumes(source: Path, feedback: Path, tmp_path: Path) -> None:
    """tests/conversion/test_feedback.py stops and resumes feedback by itself."""
    words = [str(source), *FEEDBACK]
    killed(tmp_path, words)
    assert quantkit("gguf", *words, "-o", tmp_path).code == 0
    assert sha256(written(tmp_path)) == sha256(feedback)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--target-size", "2M", "--target-bpw", "4"), "give one of --target-size and --target-bpw"),
        (("--target-bpw", "4", "--no-imatrix"), "choose types by a calibration"),
        (("--target-bpw", "4", "--pure"), "--pure does not go with"),
        (("--target-bpw", "4", "--split-max-size", "1M"), "--split-max-size does not go with"),
        (("--target-bpw", "nan"), "--target-bpw"),
        (("--target-bpw", "-1"), "--target-bpw -1 is not between 0 and 32 bits"),
        (("--target-bpw", "99"), "--target-bpw 99 is not between 0 and 32 bits"),
        (("--target-size", "many"), "--target-size"),
    ],
)
def test_a_target_that_cannot_be_met_is_one_sentence(words: tuple[str, ...], sentence: str, source: Path) -> None:
    answer = quantkit("gguf", source, *words, "--dry-run")
    assert answer.code in (1, 2)
    assert sentence in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("others", [(), ("--leave-output-tensor", "--tensor-type", "ffn=q8_0")])
@pytest.mark.parametrize("least", ["--target-size 100k", "--target-bpw 0.5"])
def test_a_target_that_is_too_small_names_the_smallest_that_works(
    least: str, others: tuple[str, ...], source: Path, tmp_path: Path
) -> None:
    words = ("--dry-run", *others, "-o", tmp_path)
    refused = quantkit("gguf", source, *least.split(), *words)
    assert refused.code == 2
    option = least.split()[0]
    (value,) = re.findall(rf"the smallest that works .* is {option} ([\d.]+M?) \(", refused.sentence)
    assert quantkit("gguf", source, option, value, *words).code == 0
    number = float(value.removesuffix("M"))
    below = f"{number - 0.02:.2f}{value[len(value.removesuffix('M')) :]}"
    assert quantkit("gguf", source, option, below, *words).code == 2


def test_a_gguf_is_no_source_for_a_file_of_a_given_size(source: Path, tmp_path: Path) -> None:
    assert quantkit("gguf", source, "-t", "f16", "-o", tmp_path, "--no-logits").code == 0
    answer = quantkit("gguf", tmp_path / "model-GGUF" / "model-F16.gguf", "--target-bpw", "4", "--dry-run")
    assert answer.code == 2
    assert "needs a checkpoint, but model-F16 is a GGUF; convert the original checkpoint" in answer.stderr
    # what the sentence names does work
    options = ("--base", source, "--target-bpw", "12", *CUT, "-o", tmp_path / "again")
    answer = quantkit("convert", tmp_path / "model-GGUF" / "model-F16.gguf", *options)
    assert answer.code == 0, answer.stderr
    assert len(list((tmp_path / "again").rglob("*BPW.gguf"))) == 1
