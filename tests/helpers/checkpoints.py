"""Changes to a checkpoint's folder: settings of config.json, and tensors that take the values of others."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo.safetensors_file import write_safetensors
from quantkit.checkpoint import open_checkpoint


def edit_config(folder: Path, **settings: Any) -> Path:
    """Set keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


def copy_tensors(folder: Path, copies: Mapping[str, str]) -> Path:
    """Give tensors of model.safetensors the values of others, by {new name: name}; all others stay as they are."""
    with open_checkpoint(str(folder)) as opened:
        arrays = {
            name: (tensor.dtype, opened.read_rows(name, 0, tensor.n_rows).reshape(tensor.shape))
            for name, tensor in opened.tensors.items()
        }
    for new, name in copies.items():
        arrays[new] = arrays[name]
    write_safetensors(folder / "model.safetensors", arrays)
    return folder
