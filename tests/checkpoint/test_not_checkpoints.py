"""A folder that is not a checkpoint is named as what it is, with what to pass instead, also without a config.json."""

import json
from pathlib import Path

import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.checkpoint.folder import unreadable
from quantkit.errors import CheckpointError
from tests.checkpoint.files import refusal, sharded, single

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("adapter_model.safetensors", "to --adapter to merge it"),
        ("adapter_config.json", "holds an adapter (LoRA)"),
        ("consolidated.00.pth", "original weights (consolidated.00.pth); take the checkpoint in Hugging Face format"),
        ("consolidated.safetensors", "Hugging Face format"),
        ("model-q4_0.gguf", "pass one of those files"),
        ("zero_to_fp32.py", "zero_to_fp32.py . OUTPUT"),
        ("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "DeepSpeed ZeRO"),
        ("__0_0.distcp", "accelerate merge-weights"),
        ("tf_model.h5", "TensorFlow"),
    ],
)
@pytest.mark.parametrize("config", [False, True])
def test_a_folder_of_something_else_is_named_with_and_without_a_config(
    tmp_path: Path, file: str, words: str, config: bool
) -> None:
    (tmp_path / file).write_bytes(b"x")
    if config:
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert words in refusal(tmp_path, CheckpointError)


def test_an_adapter_names_its_base_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "ORG/BASE"}))
    assert "an adapter (LoRA) for 'ORG/BASE'" in refusal(tmp_path, CheckpointError)


def test_the_output_of_a_trainer_names_its_last_checkpoint(tmp_path: Path) -> None:
    for step in (90, 200, 1000):
        single(tmp_path / f"checkpoint-{step}")
    message = refusal(tmp_path, CheckpointError)
    assert "3 checkpoints" in message and message.endswith(f"such as {tmp_path / 'checkpoint-1000'}")


@pytest.mark.parametrize("inside", ["", "snapshots"])
@pytest.mark.parametrize("main", [True, False])
def test_a_hub_cache_folder_names_its_snapshot(tmp_path: Path, inside: str, main: bool) -> None:
    folder = tmp_path / "models--ORG--NAME"
    snapshot = single(folder / "snapshots" / ("0" * 40))
    if main:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
    message = refusal(folder / inside, CheckpointError)
    assert "hub cache folder" in message and message.endswith(f"pass the snapshot inside it, {snapshot}")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model"])
def test_a_git_lfs_pointer_is_recognised_in_the_place_of_any_file(tmp_path: Path, file: str) -> None:
    (single(tmp_path) / file).write_bytes(POINTER)
    message = refusal(tmp_path, CheckpointError)
    assert file in message and "git lfs pull" in message


def test_a_git_lfs_pointer_is_recognised_in_the_place_of_an_index(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model.safetensors.index.json").write_bytes(POINTER)
    assert "git lfs pull" in refusal(tmp_path, CheckpointError)


def test_a_git_lfs_pointer_that_no_conversion_reads_does_no_harm(tmp_path: Path) -> None:
    (single(tmp_path) / "training_args.bin").write_bytes(POINTER)
    with open_checkpoint(str(tmp_path)) as checkpoint:
        assert checkpoint.notes == ()


def test_a_file_without_permission_says_how_to_allow_it() -> None:
    message = unreadable("tokenizer.json", "model", PermissionError(13, "Permission denied"))
    assert (
        message == "tokenizer.json of model cannot be read (Permission denied); allow it with chmod u+r tokenizer.json"
    )


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_wrong_permissions_of_any_file_are_named(tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import os
    import pathlib

    (single(tmp_path) / "tokenizer.json").write_text("{}")
    open_fd, open_file = os.open, io.open

    def deny(path: object) -> None:
        if not isinstance(path, int) and Path(os.fsdecode(path)).name == file:  # type: ignore[arg-type]
            raise PermissionError(13, "Permission denied", str(path))

    def os_open(path: object, *args: object, **named: object) -> object:
        deny(path)
        return open_fd(path, *args, **named)  # type: ignore[arg-type]

    def io_open(path: object, *args: object, **named: object) -> object:
        deny(path)
        return open_file(path, *args, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "open", os_open)
    monkeypatch.setattr(io, "open", io_open)
    # pathlib of Python 3.10 keeps the function that it found when it was imported
    if accessor := getattr(pathlib, "_NormalAccessor", None):
        monkeypatch.setattr(accessor, "open", staticmethod(io_open))
    message = refusal(tmp_path, CheckpointError)
    assert file in message and "chmod u+r" in message
