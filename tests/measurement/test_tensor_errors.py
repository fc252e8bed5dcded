import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from quantkit.errors import CheckpointError, MeasureError
from quantkit.measurement import tensor_errors as module
from quantkit.measurement.tensor_errors import TensorError, tensor_errors
from quantkit.quant.grid import Grid
from tests.forward.test_forward import load
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama
from tests.measurement.tiny_gguf import write_tiny_gguf
from tests.packed.folders import write_folder

Q4_0, Q8_0 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"), dtype="f32", variant="mistral")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return write_tiny_gguf(folder, folder / "tiny.gguf")


def write_gguf(path: Path, tensors: dict[str, np.ndarray], kind: gguf.GGMLQuantizationType | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, data in tensors.items():
        if kind is None or data.ndim < 2:
            writer.add_tensor(name, data)
        else:
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))


def named(errors: list[TensorError]) -> dict[tuple[int | None, str], TensorError]:
    by_name = {(error.layer, error.kind): error for error in errors}
    assert len(by_name) == len(errors)
    return by_name


@pytest.mark.parametrize("kind", [Q4_0, Q8_0])
def test_each_matrix_has_the_error_that_the_gguf_package_finds(
    kind: gguf.GGMLQuantizationType, plain: Path, tmp_path: Path
) -> None:
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(plain).tensors}
    errors = named(tensor_errors(plain, write_gguf(tmp_path / "q.gguf", tensors, kind)))
    matrices = {name: data for name, data in tensors.items() if data.ndim == 2}
    assert len(errors) == len(matrices) == 2 * 7 + 2
    for name, data in matrices.items():
        parts = name.split(".")
        error = errors[(int(parts[1]), parts[2]) if parts[0] == "blk" else (None, parts[0])]
        expected = relative(gguf.quants.dequantize(gguf.quants.quantize(data, kind), kind), data)
        assert error.error == pytest.approx(expected, rel=1e-4) and error.type == kind.name


def test_a_folder_compares_with_a_gguf_whatever_the_order_of_rows(folder: Path, plain: Path, tmp_path: Path) -> None:
    assert {error.error for error in tensor_errors(folder, plain)} == {0.0}
    assert {error.error for error in tensor_errors(plain, folder)} == {0.0}
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(plain).tensors}
    tensors["blk.1.attn_q.weight"] *= np.float32(1.25)
    errors = named(tensor_errors(folder, write_gguf(tmp_path / "changed.gguf", tensors)))
    assert errors.pop((1, "attn_q")).error == pytest.approx(0.25)
    assert {error.error for error in errors.values()} == {0.0}


def test_a_gptq_folder_has_the_error_of_its_words_unpacked_by_hand(folder: Path, tmp_path: Path) -> None:
    write_folder(folder, tmp_path / "gptq", "gptq", Grid(4, 32, True))
    errors = named(tensor_errors(folder, tmp_path / "gptq"))
    source, _ = load(folder)
    packed = load_file(tmp_path / "gptq" / "model.safetensors")
    for name, kind in {"mlp.down_proj": "ffn_down", "self_attn.q_proj": "attn_q"}.items():
        linear = f"model.layers.1.{name}"
        words, zeros = (packed[f"{linear}.{part}"].view(np.uint32) for part in ("qweight", "qzeros"))
        nibble = np.arange(0, 32, 4, dtype=np.uint32)
        q = ((words[:, None, :] >> nibble[:, None]) & 15).reshape(-1, words.shape[1]).astype(np.int64)
        zero = ((zeros[:, :, None] >> nibble) & 15).reshape(len(zeros), -1).astype(np.int64) + 1
        scale = packed[f"{linear}.scales"].astype(np.float64)
        weight = (q - np.repeat(zero, 32, axis=0)) * np.repeat(scale, 32, axis=0)
        error = errors[1, kind]
        assert error.type == "GPTQ 4-bit"
        assert error.error == pytest.approx(relative(weight.T, source[f"{linear}.weight"]), rel=1e-4)
    assert errors[None, "token_embd"].type == "F16" and 0 < errors[None, "token_embd"].error < 1e-3


def test_a_gguf_reference_compares_with_a_gptq_folder(folder: Path, plain: Path, tmp_path: Path) -> None:
    write_folder(folder, tmp_path / "gptq", "gptq", Grid(4, 32, True))
    assert tensor_errors(plain, tmp_path / "gptq") == tensor_errors(folder, tmp_path / "gptq")


def test_awq_has_no_rows_for_its_scales_moved_between_matrices(folder: Path, tmp_path: Path) -> None:
    write_folder(folder, tmp_path / "awq", "awq", Grid(4, 32))
    assert tensor_errors(folder, tmp_path / "awq") == []


def test_awqs_scales_in_another_format_are_seen_in_the_norms(folder: Path, tmp_path: Path) -> None:
    few = ("--samples", "4", "--seq-len", "32", "--raw", "--group-size", "32")
    for algorithm in ("awq", "gptq"):
        options = ("-t", "w4a16", "--algorithm", algorithm)
        done = quantkit("convert", folder, *options, *few, "--name", algorithm, "-o", tmp_path)
        assert done.code == 0, done.stderr
    with pytest.raises(MeasureError, match="awq-W4A16, because scales were folded"):
        tensor_errors(folder, tmp_path / "awq-W4A16")
    assert {error.type for error in tensor_errors(folder, tmp_path / "gptq-W4A16")} > {"COMPRESSED-TENSORS 4-bit"}
    # the same scales in a GGUF of the folder
    done = quantkit("gguf", tmp_path / "awq-W4A16", "-t", "q8_0", "--name", "m", "-o", tmp_path)
    assert done.code == 0, done.stderr
    with pytest.raises(MeasureError, match="scales were folded"):
        tensor_errors(folder, tmp_path / "m-GGUF" / "m-Q8_0.gguf")


def test_stacked_experts_are_one_row_and_vectors_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "blk.0.attn_norm.weight": rng.standard_normal(64).astype(np.float32),
        "blk.0.ffn_down_exps.weight": rng.standard_normal((4, 48, 64)).astype(np.float32),
    }
    reference = write_gguf(tmp_path / "a.gguf", tensors)
    tensors["blk.0.ffn_down_exps.weight"][2] = 0
    (row,) = tensor_errors(reference, write_gguf(tmp_path / "b.gguf", tensors))
    assert (row.layer, row.kind, row.type) == (0, "ffn_down_exps", "F32")
    assert row.error == pytest.approx(0.5, abs=0.02)
    assert row.document() == {"layer": 0, "kind": "ffn_down_exps", "type": "F32", "error": row.error}


def test_an_output_matrix_of_its_own_compares_with_a_tied_embedding(tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)
    tied = write_gguf(tmp_path / "tied.gguf", {"token_embd.weight": data})
    apart = write_gguf(tmp_path / "apart.gguf", {"token_embd.weight": data, "output.weight": data * np.float32(0.9)})
    errors = named(tensor_errors(tied, apart))
    assert errors[None, "token_embd"].error == 0 and errors[None, "output"].error == pytest.approx(0.1)


def test_of_a_huge_matrix_slices_over_all_of_it_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    data = {"output.weight": rng.standard_normal((4096, 64)).astype(np.float32)}
    reference = write_gguf(tmp_path / "a.gguf", data)
    candidate = write_gguf(tmp_path / "b.gguf", data, Q4_0)
    (whole,) = tensor_errors(reference, candidate)
    monkeypatch.setattr(module, "_SLICE", 1 << 11)
    monkeypatch.setattr(module, "_HUGE", 1 << 15)
    read = []
    original = module._error
    monkeypatch.setattr(module, "_error", lambda a, b: original(counted(a, read), b))
    (sampled,) = tensor_errors(reference, candidate)
    assert sampled.error != whole.error and sampled.error == pytest.approx(whole.error, rel=0.05)
    assert sum(stop - start for start, stop in read) * 64 <= 1 << 15
    assert min(read)[0] == 0 and max(read)[1] > 3500


def counted(matrix: "module._Matrix", read: list[tuple[int, int]]) -> "module._Matrix":
    def rows(start: int, stop: int) -> np.ndarray:
        read.append((start, stop))
        return matrix.rows(start, stop)

    return module._Matrix(matrix.name, matrix.shape, matrix.step, matrix.type, rows)


def test_another_model_is_one_sentence(plain: Path, tmp_path: Path) -> None:
    data = np.ones((32, 32), np.float32)
    other = write_gguf(tmp_path / "other.gguf", {"token_embd.weight": data})
    with pytest.raises(MeasureError, match=r"token_embd\.weight is \[32, 32\] in other\.gguf and \[768, 256\] in tiny"):
        tensor_errors(plain, other)
    with pytest.raises(MeasureError, match="no weight matrix in common"):
        tensor_errors(plain, write_gguf(tmp_path / "none.gguf", {"blk.9.attn_q.weight": data}))


def test_a_damaged_file_is_one_sentence(plain: Path, folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(plain.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"bad\.gguf is not a sound GGUF file"):
        tensor_errors(plain, bad)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "model.safetensors").write_bytes(b"\0" * 8)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        tensor_errors(copy, plain)
