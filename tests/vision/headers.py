"""GGUF files with chosen keys and one small tensor."""

from pathlib import Path

import gguf
import numpy as np


def write_gguf(path: Path, arch: str, **keys: str | int | list[str]) -> Path:
    """A GGUF of the architecture `arch`; two underscores in a key stand for a dot."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in keys.items():
        name = key.replace("__", ".")
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_uint32(name, value)
    writer.add_tensor("a.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
