"""A folder is opened only when its files agree with each other; otherwise one sentence names the file at fault."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, UnsupportedError
from tests.checkpoint.files import (
    SHARDS,
    entry,
    file_bytes,
    refusal,
    sharded,
    single,
    tensors,
    weight_map,
    write_config,
    write_index,
)


def test_a_single_file_checkpoint_opens_with_its_tensors_in_order_of_name(tmp_path: Path) -> None:
    folder = single(
        tmp_path / "Tiny-Model", {"b.weight": np.zeros((2, 3), np.float32), "a.weight": np.zeros(3, np.float16)}
    )
    with open_checkpoint(str(folder)) as checkpoint:
        assert checkpoint.name == "Tiny-Model"
        assert (checkpoint.repo_id, checkpoint.revision) == (None, None)
        assert checkpoint.folder == folder.resolve()
        assert checkpoint.config["model_type"] == "llama"
        assert [(t.name, t.dtype, t.shape) for t in checkpoint.tensors.values()] == [
            ("a.weight", "F16", (3,)),
            ("b.weight", "F32", (2, 3)),
        ]
        assert list(checkpoint.header_sha256) == ["model.safetensors"]


def test_a_folder_named_by_a_dot_gets_its_real_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(single(tmp_path / "SmolModel"))
    with open_checkpoint(".") as checkpoint:
        assert checkpoint.name == "SmolModel"


def test_a_snapshot_in_a_hub_cache_is_named_by_its_repository(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = single(tmp_path / "models--Some-Org--Tiny-Model" / "snapshots" / commit)
    with open_checkpoint(str(folder)) as checkpoint:
        assert (checkpoint.name, checkpoint.repo_id) == ("Tiny-Model", "Some-Org/Tiny-Model")
        assert checkpoint.revision == commit


def test_a_linked_folder_keeps_the_name_the_user_gave(tmp_path: Path) -> None:
    (tmp_path / "nice").symlink_to(single(tmp_path / "ugly-0001"))
    with open_checkpoint(str(tmp_path / "nice")) as checkpoint:
        assert checkpoint.name == "nice"


@pytest.mark.parametrize("index", [True, False])
def test_a_sharded_checkpoint_opens_with_and_without_its_index(tmp_path: Path, index: bool) -> None:
    with open_checkpoint(str(sharded(tmp_path, index=index))) as checkpoint:
        assert [(name, t.file) for name, t in checkpoint.tensors.items()] == [
            ("a.weight", SHARDS[0]),
            ("b.weight", SHARDS[0]),
            ("c.weight", SHARDS[1]),
            ("d.weight", SHARDS[1]),
        ]
        assert sorted(checkpoint.header_sha256) == list(SHARDS)


def test_shards_that_are_symbolic_links_as_in_the_hub_cache_open(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "snapshots" / "0123")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for file in SHARDS:
        (folder / file).rename(blobs / file)
        (folder / file).symlink_to(Path("../../blobs") / file)
    with open_checkpoint(str(folder)) as checkpoint:
        assert len(checkpoint.tensors) == 4


def test_safetensors_are_taken_where_pickles_and_original_files_lie_beside_them(tmp_path: Path) -> None:
    folder = single(tmp_path)
    for other in ("pytorch_model.bin", "consolidated.safetensors", "consolidated.00.pth", "model.gguf"):
        (folder / other).write_bytes(b"not looked at")
    with open_checkpoint(str(folder)) as checkpoint:
        assert list(checkpoint.header_sha256) == ["model.safetensors"]


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, index: bool) -> None:
    folder = sharded(tmp_path, index=index)
    (folder / SHARDS[1]).unlink()
    assert SHARDS[1] in refusal(folder, CheckpointError)


def test_a_first_shard_missing_without_an_index_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path, index=False)
    (folder / SHARDS[0]).unlink()
    assert SHARDS[0] in refusal(folder, CheckpointError)


def test_shards_of_two_different_sets_without_an_index_are_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path, index=False)
    (folder / SHARDS[1]).rename(folder / "model-00002-of-00003.safetensors")
    assert "different sets" in refusal(folder, CheckpointError)


def test_a_truncated_shard_is_named_with_both_sizes(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    shard = folder / SHARDS[1]
    size = shard.stat().st_size
    os.truncate(shard, size - 7)
    message = refusal(folder, CheckpointError)
    assert SHARDS[1] in message and str(size - 7) in message and str(size) in message


@pytest.mark.parametrize("size", [0, 3, 8, 20])
def test_a_shard_cut_inside_its_header_is_named(tmp_path: Path, size: int) -> None:
    folder = sharded(tmp_path)
    os.truncate(folder / SHARDS[0], size)
    assert SHARDS[0] in refusal(folder, CheckpointError)


def test_a_header_claim_of_two_to_the_sixty_bytes_is_refused_at_once(tmp_path: Path) -> None:
    (write_config(tmp_path) / "model.safetensors").write_bytes(file_bytes({}, bytes(100), length=2**60))
    assert str(2**60) in refusal(tmp_path, CheckpointError)


def test_overlapping_tensors_are_named(tmp_path: Path) -> None:
    header = {"first": entry("F32", [4], 0, 16), "second": entry("F32", [4], 8, 24)}
    (write_config(tmp_path) / "model.safetensors").write_bytes(file_bytes(header, bytes(24)))
    message = refusal(tmp_path, CheckpointError)
    assert "overlap" in message and "'first'" in message and "'second'" in message


@pytest.mark.parametrize(
    "file", ["../outside.safetensors", "/etc/passwd", "sub/../../x.safetensors", "", 7, "a\\b", "a\nb"]
)
def test_an_index_that_points_outside_the_folder_is_refused(tmp_path: Path, file: object) -> None:
    folder = sharded(tmp_path / "model")
    save_file({"a.weight": np.zeros((4, 8), np.float32)}, tmp_path / "outside.safetensors")
    write_index(folder, {**weight_map(folder), "a.weight": file})
    message = refusal(folder, CheckpointError)
    assert "'a.weight'" in message and "inside" in message


def test_an_index_that_promises_a_tensor_no_shard_has_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    write_index(folder, {**weight_map(folder), "e.weight": SHARDS[0]})
    assert "'e.weight'" in refusal(folder, CheckpointError)


def test_an_index_that_names_the_wrong_shard_says_which_is_right(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    write_index(folder, {**weight_map(folder), "a.weight": SHARDS[1]})
    assert f"it is in {SHARDS[0]}" in refusal(folder, CheckpointError)


def test_a_shard_with_a_tensor_the_index_does_not_list_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    write_index(folder, {name: file for name, file in weight_map(folder).items() if name != "d.weight"})
    assert "'d.weight'" in refusal(folder, CheckpointError)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path, index=False)
    save_file({"a.weight": np.zeros((4, 8), np.float32)}, folder / SHARDS[1])
    message = refusal(folder, CheckpointError)
    assert "'a.weight'" in message and SHARDS[0] in message and SHARDS[1] in message


@pytest.mark.parametrize("content", [b"{}", b'{"weight_map": []}', b'{"weight_map": {}}', b"{", b"\xff\xfe", b"[]"])
def test_a_malformed_index_is_named(tmp_path: Path, content: bytes) -> None:
    folder = sharded(tmp_path)
    (folder / "model.safetensors.index.json").write_bytes(content)
    assert "model.safetensors.index.json" in refusal(folder, CheckpointError)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no config.json"),
        (b"", "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{"model_type": "\xe9"}', "not UTF-8"),
        (b'["llama"]', "not an object"),
        (b"{}", "neither architectures nor model_type"),
        (b'{"a":' * 500_000, "nested too deeply"),
        (b'{"model_type": "llama", "model_type": "gemma"}', "twice"),
    ],
)
def test_a_missing_or_malformed_config_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    folder = single(tmp_path)
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    message = refusal(folder, CheckpointError)
    assert "config.json" in message and words in message


def test_an_empty_folder_a_file_and_a_name_that_is_nothing_each_get_their_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    assert "is empty" in refusal(tmp_path / "empty", CheckpointError)
    assert "is a file" in refusal(tmp_path / "file", CheckpointError)
    assert "neither an existing folder nor a hub id" in refusal(tmp_path / "no" / "such" / "folder", CheckpointError)
    for odd in ("", "a\0b", "x" * 10_000, "gpt2", "org/name@"):
        assert "neither" in refusal(odd, CheckpointError)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (None, "no weights"),
        ("adapter_model.safetensors", "merge it"),
        ("model-q4_0.gguf", "GGUF"),
        ("consolidated.00.pth", "Hugging Face format"),
        ("tf_model.h5", "TensorFlow"),
    ],
)
def test_a_folder_without_usable_weights_says_what_it_holds(tmp_path: Path, file: str | None, words: str) -> None:
    write_config(tmp_path)
    if file is not None:
        (tmp_path / file).write_bytes(b"x")
    assert words in refusal(tmp_path, CheckpointError)


@pytest.mark.parametrize("method", ["aqlm", "hqq", "quanto", "torchao"])
def test_a_quantization_that_is_not_read_is_refused_with_its_method(tmp_path: Path, method: str) -> None:
    folder = single(tmp_path, quantization_config={"quant_method": method, "bits": 4})
    message = refusal(folder, UnsupportedError)
    assert f"already quantized ('{method}')" in message and "take the original" in message


@pytest.mark.parametrize("method", ["awq", "gptq", "bitnet", "compressed-tensors", "auto-round"])
def test_a_quantization_without_packed_weights_is_refused(tmp_path: Path, method: str) -> None:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    settings = {"bits": 4, "group_size": 32, "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    packing = {"format": "pack-quantized"} if method == "compressed-tensors" else {}
    folder = single(tmp_path, quantization_config={"quant_method": method, **settings, **packing})
    assert "no packed weights exist" in refusal(folder, CheckpointError)


def test_a_multimodal_config_that_is_quantized_inside_text_config_is_refused(tmp_path: Path) -> None:
    folder = single(tmp_path, text_config={"quantization_config": {"quant_method": "aqlm"}})
    assert "aqlm" in refusal(folder, UnsupportedError)


def test_packed_weights_without_a_word_in_the_config_are_refused(tmp_path: Path) -> None:
    folder = single(tmp_path, {**tensors(), "model.layers.0.mlp.up_proj.qweight": np.zeros((4, 4), np.int32)})
    assert "already quantized" in refusal(folder, UnsupportedError)


@pytest.mark.parametrize(("dtype", "nbytes"), [("F4", 4), ("C64", 64), ("F8_E8M0", 8), ("F8_E4M3FNUZ", 8)])
def test_a_dtype_that_cannot_be_read_is_named(tmp_path: Path, dtype: str, nbytes: int) -> None:
    header = {"w": entry(dtype, [8], 0, nbytes)}
    (write_config(tmp_path) / "model.safetensors").write_bytes(file_bytes(header, bytes(nbytes)))
    message = refusal(tmp_path, UnsupportedError)
    assert dtype in message and "'w'" in message


def test_a_header_without_any_tensor_is_refused(tmp_path: Path) -> None:
    (write_config(tmp_path) / "model.safetensors").write_bytes(file_bytes({}, b""))
    assert "no tensors" in refusal(tmp_path, CheckpointError)


def test_a_refused_checkpoint_leaves_no_file_open(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    os.truncate(folder / SHARDS[1], 100)
    before = len(list(Path("/proc/self/fd").iterdir()))
    refusal(folder, CheckpointError)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_index_over_a_single_file_is_followed(tmp_path: Path) -> None:
    folder = single(tmp_path)
    write_index(folder, dict.fromkeys(tensors(), "model.safetensors"))
    with open_checkpoint(str(folder)) as checkpoint:
        assert set(checkpoint.tensors) == set(tensors())


def test_config_values_json_does_not_know_are_kept_as_python_reads_them(tmp_path: Path) -> None:
    folder = single(tmp_path)
    (folder / "config.json").write_text('{"model_type": "llama", "limit": Infinity}')
    with open_checkpoint(str(folder)) as checkpoint:
        assert checkpoint.config["limit"] == json.loads("Infinity")
