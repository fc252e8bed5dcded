"""pytorch_model.bin is read through torch's weights_only loader, row by row as safetensors are; a pickle never runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, MissingExtraError, UnsupportedError
from tests.checkpoint.files import refusal, single, write_config

SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is the optional extra quantkit[torch]")


def test_without_torch_one_sentence_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # what an import finds when the package is not installed
    (write_config(tmp_path) / "pytorch_model.bin").write_bytes(b"PK")
    message = refusal(tmp_path, MissingExtraError)
    assert "pip install 'quantkit[torch]'" in message and "pytorch_model.bin" in message


def test_a_torch_that_could_be_made_to_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        __version__ = "2.9.1+cpu"

    monkeypatch.setitem(sys.modules, "torch", Old())
    (write_config(tmp_path) / "pytorch_model.bin").write_bytes(b"PK")
    assert "2.9.1" in refusal(tmp_path, MissingExtraError)


def test_a_folder_with_safetensors_never_imports_torch(tmp_path: Path) -> None:
    folder = single(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    code = (
        "import sys; from quantkit.checkpoint import open_checkpoint; open_checkpoint(sys.argv[1]);"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def _state(torch: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(33, 48, generator=generator)
    return {
        "f32.weight": weight,
        "f16.weight": weight.half(),
        "bf16.weight": weight.bfloat16(),
        "f64.weight": weight.double(),
        "i64": torch.arange(7),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "tied.weight": weight,
        "second_half.weight": weight[16:],
        "cube": torch.randn(2, 3, 5, generator=generator),
    }


def _check(folder: Path, expected: dict[str, Any], torch: Any) -> None:
    with open_checkpoint(str(folder)) as checkpoint:
        assert sorted(checkpoint.tensors) == sorted(expected)
        for name, info in checkpoint.tensors.items():
            tensor = expected[name]
            assert info.shape == tuple(tensor.shape)
            want = tensor.reshape(info.n_rows, info.row_length)
            for start, stop in ((0, info.n_rows), (info.n_rows // 2, info.n_rows)):
                got = checkpoint.read_rows(name, start, stop)
                assert got.dtype == info.read_dtype
                if info.dtype == "BF16":
                    assert np.array_equal(got.view(np.int16), want[start:stop].view(torch.int16).numpy())
                else:
                    np.testing.assert_array_equal(got, want[start:stop].numpy().astype(info.read_dtype))


def test_values_equal_torchs_own_for_every_dtype_view_and_tie(tmp_path: Path, torch: Any) -> None:
    state = _state(torch)
    torch.save(state, write_config(tmp_path) / "pytorch_model.bin")
    _check(tmp_path, state, torch)
    with open_checkpoint(str(tmp_path)) as checkpoint:
        dtypes = {name: info.dtype for name, info in checkpoint.tensors.items()}
        assert dtypes["bf16.weight"] == "BF16" and dtypes["f64.weight"] == "F64" and dtypes["i64"] == "I64"
        assert checkpoint.tensors["tied.weight"].offset == checkpoint.tensors["f32.weight"].offset


def test_shards_with_an_index_are_read_from_their_files(tmp_path: Path, torch: Any) -> None:
    state = _state(torch)
    names = sorted(state)
    write_config(tmp_path)
    weight_map = {}
    for file, part in zip(SHARDS, (names[:5], names[5:]), strict=True):
        torch.save({name: state[name].clone() for name in part}, tmp_path / file)
        weight_map.update(dict.fromkeys(part, file))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _check(tmp_path, state, torch)
    (tmp_path / SHARDS[1]).unlink()
    assert SHARDS[1] in refusal(tmp_path, CheckpointError)


def test_reading_goes_on_after_torch_has_let_go_of_the_file(tmp_path: Path, torch: Any) -> None:
    torch.save({"w": torch.ones(4, 4)}, write_config(tmp_path) / "pytorch_model.bin")
    with open_checkpoint(str(tmp_path)) as checkpoint:
        assert "pytorch_model.bin" not in Path("/proc/self/maps").read_text()
        assert (checkpoint.read_rows("w", 0, 4) == 1).all()


class Malicious:
    """A pickle that would create a file when loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, torch: Any) -> None:
    marker = tmp_path / "it-ran"
    folder = write_config(tmp_path / "model")
    torch.save({"w": torch.ones(2, 2), "x": Malicious(marker)}, folder / "pytorch_model.bin")
    assert "could run code" in refusal(folder, CheckpointError)
    assert not marker.exists()


def test_damaged_nested_and_old_files_get_one_sentence_each(tmp_path: Path, torch: Any) -> None:
    def message(name: str, error: type[Exception] = CheckpointError) -> str:
        return refusal(tmp_path / name, error)

    def path(name: str) -> Path:
        return write_config(tmp_path / name) / "pytorch_model.bin"

    torch.save({"w": torch.ones(64, 64)}, path("cut"))
    os.truncate(path("cut"), 9000)
    assert "pytorch_model.bin" in message("cut")
    torch.save({"w": torch.ones(2, 2)}, path("old"), _use_new_zipfile_serialization=False)
    assert "before 1.6" in message("old")
    torch.save({"model": {"w": torch.ones(2, 2)}}, path("nested"))
    assert "flat table" in message("nested")
    torch.save([torch.ones(2, 2)], path("list"))
    assert "flat table" in message("list")
    torch.save({"w": torch.ones(2, 3).T}, path("transposed"))
    assert "transposed" in message("transposed")
    torch.save({"w": torch.ones(2, 2, dtype=torch.complex64)}, path("complex"))
    assert "C64" in message("complex", UnsupportedError)
    torch.save({"w": torch.ones(2, 2).to_sparse()}, path("sparse"))
    assert "dense" in message("sparse")
    path("noise").write_bytes(b"\x80\x02}q\x00.")
    message("noise")


def test_a_zip_whose_members_another_tool_moved_is_read_right(tmp_path: Path, torch: Any) -> None:
    import zipfile

    state = {"a": torch.arange(300, dtype=torch.float32).reshape(3, 100), "b": torch.full((3, 100), 7.0)}
    plain = tmp_path / "plain.bin"
    torch.save(state, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(write_config(tmp_path / "moved") / "pytorch_model.bin", "w", zipfile.ZIP_STORED) as target,
    ):
        for info in reversed(source.infolist()):
            target.writestr(info.filename, source.read(info))
    _check(tmp_path / "moved", state, torch)
