"""A GGUF as the source: what is odd about it is taken along, or refused in a sentence."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from quantkit.errors import UnsupportedError
from quantkit.outputs.gguf_source import model_from_gguf
from tests.conversion.test_bytes import a_random_imatrix, convert, tensors
from tests.helpers.command import command, quantkit
from tests.helpers.forked import start_process
from tests.helpers.kills import disturbed
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    checkpoint = tiny_llama(
        folder / "model", variant="llama3", hidden=512, intermediate=1536, layers=6, heads=8, dtype="f16"
    )
    return convert(checkpoint, folder, ["f16"])["f16"]


def rewritten(source: Path, target: Path, alignment: int = 32, extra: np.ndarray | None = None) -> Path:
    """The same model written by the format's own package, with another alignment or one more tensor."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, "llama")
    writer.add_custom_alignment(alignment)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        writer.add_key_value(field.name, field.contents(), kind, sub_type=field.types[-1] if kind == 9 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    if extra is not None:
        writer.add_tensor("blk.0.ffn_gate_tid2eid.weight", extra)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize("alignment", [32, 64, 256])
def test_a_source_of_any_alignment_gives_the_same_tensors(source: Path, tmp_path: Path, alignment: int) -> None:
    odd = rewritten(source, tmp_path / "odd.gguf", alignment)
    answer = quantkit("gguf", odd, "-t", "q4_0", "-o", tmp_path)
    assert answer.code == 0, answer.stderr
    straight = quantkit("gguf", source, "-t", "q4_0", "-o", tmp_path, "--name", "straight")
    assert straight.code == 0, straight.stderr
    assert tensors(tmp_path / "odd-GGUF" / "odd-Q4_0.gguf") == tensors(
        tmp_path / "straight-GGUF" / "straight-Q4_0.gguf"
    )


def test_a_tensor_of_integers_is_refused_in_a_sentence(source: Path, tmp_path: Path) -> None:
    odd = rewritten(source, tmp_path / "odd.gguf", extra=np.zeros((4, 32), np.int16))
    with pytest.raises(UnsupportedError, match=r"ffn_gate_tid2eid\.weight of odd\.gguf is I16"):
        model_from_gguf(odd)


def test_a_source_changed_behind_an_unchanged_header_is_not_resumed(source: Path, tmp_path: Path) -> None:
    changing = tmp_path / "changing.gguf"
    changing.write_bytes(source.read_bytes())
    words = ("gguf", changing, "-t", "q4_k_m", "-o", tmp_path, "--threads", "1")
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    journal = tmp_path / "changing-conversion.partial" / "journal"
    disturbed(
        lambda: start_process(command(*words), **silent),
        lambda: journal.exists() and journal.read_text().count("\n") > 3,
        lambda process: process.kill(),
        tmp_path / "changing-GGUF",
    )
    data = bytearray(changing.read_bytes())
    data[-2] ^= 1
    changing.write_bytes(data)
    answer = quantkit(*words)
    assert answer.code == 1
    assert "unfinished run with other files of the source;" in answer.sentence


def test_the_matrix_of_an_earlier_quantization_is_replaced_in_the_keys(tmp_path: Path) -> None:
    """A bf16 file that names an importance matrix gives the bytes of one that names none."""
    source = tiny_llama(tmp_path / "model", variant="llama3", hidden=64, intermediate=96)
    plain, named = tmp_path / "plain", tmp_path / "named"
    assert quantkit("gguf", source, "-t", "bf16", "-o", plain, "--no-logits").code == 0
    (bf16,) = plain.rglob("*.gguf")
    a_random_imatrix(tmp_path / "imatrix.gguf", bf16)
    matrix = ("--imatrix", tmp_path / "imatrix.gguf", "--no-logits")
    assert quantkit("gguf", source, "-t", "bf16", "-o", named, *matrix).code == 0
    (bf16_named,) = named.rglob("*.gguf")
    assert b"quantize.imatrix.file" in bf16_named.read_bytes()
    outputs = []
    for file in (bf16, bf16_named):
        done = quantkit("gguf", file, "-t", "q4_0", "-o", file.parent / "again", *matrix)
        assert done.code == 0, done.stderr
        outputs.append(next((file.parent / "again").rglob("*.gguf")).read_bytes())
    assert outputs[0] == outputs[1]
