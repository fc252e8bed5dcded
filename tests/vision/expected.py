"""Projectors that llama.cpp's converter writes of the tiny models; their figures lie in golden/.

    python -m tests.vision.expected NAME ...

makes them anew (of all cases without arguments), with the newest converter and transformers 5.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from demo.safetensors_file import write_safetensors
from tests.families.expected import read_header
from tests.families.models import weight, write_tokenizer
from tests.helpers.peer import REPOSITORY, newest_converter
from tests.vision.cases import NAMES, case_of

TYPES = ("f16", "bf16", "q8_0")
GOLDEN = Path(__file__).with_name("golden")
BREAK = 12
"""Id of the token [IMG_BREAK]."""


@cache
def expected(name: str) -> dict[str, Any]:
    """The stored figures of a case: `layout` (tensor: shape) of its checkpoint and, by type in `files`, the sha256 of
    the converter's file, its header (see `read_header`), and its tensors: name, type and shape as stored.
    """
    record: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return record


def write_checkpoint(
    name: str,
    layout: dict[str, list[int]],
    folder: Path,
    *,
    values: dict[str, list[int]] | None = None,
    change: Callable[[str, np.ndarray], np.ndarray] = lambda name, values: values,
) -> Path:
    """The case's checkpoint, as published: folder/NAME with bfloat16 weights, tokenizer and processor files.

    `values`: names by which the values are drawn, in the order of `layout`; its own by default. `change` is applied to
    each tensor.
    """
    case, here = case_of(name), folder / name
    here.mkdir(parents=True)
    (here / "config.json").write_text(json.dumps(case.config))
    for file, settings in case.processors.items():
        (here / file).write_text(json.dumps(settings))
    drawn = zip(layout.items(), values or layout, strict=True)
    tensors = {
        key: change(key, weight(0, name, tuple(shape)).astype(ml_dtypes.bfloat16)) for (key, shape), name in drawn
    }
    write_safetensors(here / "model.safetensors", {key: ("BF16", value) for key, value in sorted(tensors.items())})
    write_tokenizer(here, "smollm")
    if case.break_token:
        path = here / "tokenizer.json"
        text = json.loads(path.read_text())
        old = next(token for token in text["added_tokens"] if token["id"] == BREAK)
        path.write_text(path.read_text().replace(json.dumps(old["content"]), '"[IMG_BREAK]"'))
    return here


def describe(path: Path) -> dict[str, Any]:
    """The figures of a projector's file."""
    tensors = [
        [tensor.name, tensor.tensor_type.name, [int(n) for n in tensor.shape[::-1]]]
        for tensor in gguf.GGUFReader(path).tensors
    ]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"sha256": digest, "header": read_header(path), "tensors": tensors}


def layouts_of(names: Sequence[str], folder: Path) -> dict[str, dict[str, list[int]]]:
    """Names and shapes of the tensors of cases, by transformers 5; `folder` takes files of them."""
    peer = newest_converter()
    environment = peer.environment()
    environment["PYTHONPATH"] = f"{environment['PYTHONPATH']}:{REPOSITORY}"
    command = [str(peer.python), "-m", "tests.vision.layouts", str(folder), *names]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


def compute(name: str, folder: Path) -> dict[str, Any]:
    """The figures of a case, made now; its checkpoint is folder/NAME, the converter's files folder/NAME-TYPE.gguf."""
    peer, layout = newest_converter(), layouts_of([name], folder)[name]
    checkpoint = write_checkpoint(name, layout, folder)
    files = {}
    for kind in TYPES:
        out = folder / f"{name}-{kind}.gguf"
        command = [*peer.convert_command(checkpoint, out, kind), "--mmproj"]
        done = subprocess.run(command, env=peer.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        files[kind] = describe(out)
    return {"layout": layout, "files": files}


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            record = compute(name, Path(folder))
        (GOLDEN / f"{name}.json").write_text(json.dumps(record, indent=None, separators=(",", ":")) + "\n")
        print(name)


if __name__ == "__main__":
    main()
