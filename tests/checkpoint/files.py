"""Checkpoint folders for the tests: the well-formed by the reference safetensors library, the others byte by byte."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file_bytes(header: Mapping[str, Any] | bytes, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file as given, right or wrong; `length` overrides the stated header length."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + data


def write_config(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def tensors(seed: int = 0, *, rows: int = 6, columns: int = 32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "model.embed_tokens.weight": rng.standard_normal((rows, columns)).astype(np.float32),
        "model.norm.weight": rng.standard_normal(columns).astype(np.float32),
    }


def single(folder: Path, arrays: Mapping[str, np.ndarray] | None = None, **config: Any) -> Path:
    """A checkpoint of one file."""
    save_file(dict(arrays or tensors()), write_config(folder, **config) / "model.safetensors")
    return folder


def sharded(folder: Path, *, index: bool = True) -> Path:
    """A checkpoint of two shards with two tensors each: a.weight and b.weight, then c.weight and d.weight."""
    write_config(folder)
    weight_map = {}
    for number, (file, names) in enumerate(zip(SHARDS, ("ab", "cd"), strict=True)):
        rng = np.random.default_rng(number)
        arrays = {f"{name}.weight": rng.standard_normal((4, 8)).astype(np.float32) for name in names}
        save_file(arrays, folder / file)
        weight_map.update(dict.fromkeys(arrays, file))
    if index:
        write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: Mapping[str, Any]) -> None:
    document = {"metadata": {"total_size": 0}, "weight_map": dict(weight_map)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))


def weight_map(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])


def refusal(folder: Path | str, error: type[Exception]) -> str:
    """The sentence with which opening the checkpoint is refused: one line, no traceback talk."""
    import pytest

    from quantkit.checkpoint import open_checkpoint

    with pytest.raises(error) as caught:
        open_checkpoint(str(folder))
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message and len(message) > 20, message
    return message
