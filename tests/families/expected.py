"""What the tiny models' GGUFs must agree with, out of transformers and llama.cpp's converter; stored in golden/.

Neither is part of quantkit's own environment, so their figures are kept: `python -m tests.families.expected GROUP ...`
makes them anew (all groups without arguments), and the full suite checks that they still come out the same.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from demo.safetensors_file import write_safetensors
from tests.families.models import all_cases, native_weights, write_tokenizer
from tests.helpers.packages import RWKV, fetch_pypi
from tests.helpers.peer import REPOSITORY, Peer, newest_converter, peer_converter

DTYPES = {"float32": "F32", "uint8": "U8", "int8": "I8", "int64": "I64"}
_LONG = 200
"""Characters of a value's JSON above which its hash is stored."""
GOLDEN = Path(__file__).with_name("golden")


@dataclass(frozen=True)
class Expected:
    """Of one case: published config.json, the native model's config and tensor shapes, logits (tokens, vocabulary) to
    half precision, and the converter's own GGUF: its architecture keys, each tensor's type, numpy shape and sha256 (16
    digits), and `header`, all its keys in order (see `read_header`).
    """

    config: dict[str, Any]
    native: dict[str, Any]
    logits: np.ndarray
    keys: dict[str, Any] | None
    tensors: dict[str, list[Any]] | None
    header: list[list[Any]] | None = None


@cache
def _golden(group: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(GOLDEN / f"{group}.npz") as logits:
        return json.loads((GOLDEN / f"{group}.json").read_text()), dict(logits)


def expected(name: str) -> Expected:
    """The stored figures of a case."""
    group, _ = all_cases()[name]
    record, logits = _golden(group)
    return Expected(logits=logits[name].astype(np.float32), **record[name])


def write_checkpoint(name: str, folder: Path) -> Path:
    """The case's checkpoint, as transformers made it, without transformers: same config, names, shapes and values."""
    _, case = all_cases()[name]
    known = expected(name)
    tensors = native_weights(case, known.native["layout"])
    if case.publish:
        tensors = case.publish(known.native["config"], tensors)[1]
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(
        folder / "model.safetensors", {key: (DTYPES[value.dtype.name], value) for key, value in sorted(tensors.items())}
    )
    write_tokenizer(folder, case.tokenizer)
    (folder / "config.json").write_text(json.dumps(known.config))
    return folder


def tensor_hash(data: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()[:16]


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Architecture keys and tensors (type, numpy shape, hash) of a GGUF, by the gguf package."""
    reader = gguf.GGUFReader(path)
    keys = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith(("GGUF.", "general.", "tokenizer."))
    }
    keys["general.architecture"] = reader.fields["general.architecture"].contents()
    tensors = {
        tensor.name: [tensor.tensor_type.name, _shape(tensor.shape), tensor_hash(tensor.data)]
        for tensor in reader.tensors
    }
    return keys, tensors


def read_header(path: Path) -> list[list[Any]]:
    """Every key of a GGUF in its order: name, type, value; of a long value the sha256 (16 digits) of its JSON."""
    header = []
    for field in gguf.GGUFReader(path).fields.values():
        if field.name.startswith("GGUF."):
            continue
        value = field.contents()
        if len(text := json.dumps(value)) > _LONG:
            value = "sha256 " + hashlib.sha256(text.encode()).hexdigest()[:16]
        header.append([field.name, "/".join(kind.name for kind in field.types), value])
    return header


def _shape(dimensions: np.ndarray) -> list[int]:
    """In numpy order, outer dimensions of one left out: ggml's own writer does so, the gguf package's does not."""
    shape = [int(n) for n in dimensions[::-1]]
    while len(shape) > 1 and shape[0] == 1:
        shape.pop(0)
    return shape


def compute(names: list[str], folder: Path) -> dict[str, Expected]:
    """The figures of `names`, made now: transformers and llama.cpp's converter in the peer's venv."""
    newest = [name for name in names if all_cases()[name][1].newest]
    older = [name for name in names if name not in newest]
    records = _compute(older, folder, peer_converter()) if older else {}
    return records | (_compute(newest, folder, newest_converter()) if newest else {})


def _compute(names: list[str], folder: Path, peer: Peer) -> dict[str, Expected]:
    environment = peer.environment()
    environment["PYTHONPATH"] = f"{environment['PYTHONPATH']}:{peer.source}:{REPOSITORY}"
    if any((all_cases()[name][1].reference or "").startswith("rwkv") for name in names):
        environment["PYTHONPATH"] += "".join(f":{fetch_pypi(*package)}" for package in RWKV)
    command = [str(peer.python), "-m", "tests.families.with_transformers", str(folder), "--convert", *names]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    records = {}
    for name in names:
        here = folder / name
        converted = folder / f"{name}.gguf"
        keys, tensors = read_gguf(converted) if all_cases()[name][1].converter else (None, None)
        records[name] = Expected(
            config=json.loads((here / "config.json").read_text()),
            native=json.loads((here / "native.json").read_text()),
            logits=np.load(here / "logits.npy").astype(np.float16),
            keys=keys,
            tensors=tensors,
            header=read_header(converted) if all_cases()[name][1].converter else None,
        )
    return records


def main() -> None:
    groups = sys.argv[1:] or sorted({group for group, _ in all_cases().values()})
    GOLDEN.mkdir(exist_ok=True)
    for group in groups:
        names = [name for name, (of, _) in all_cases().items() if of == group]
        with tempfile.TemporaryDirectory() as folder:
            computed = compute(names, Path(folder))
        record = {
            name: {field.name: getattr(known, field.name) for field in fields(known) if field.name != "logits"}
            for name, known in computed.items()
        }
        text = ",\n".join(f"{json.dumps(name)}: {json.dumps(figures)}" for name, figures in record.items())
        (GOLDEN / f"{group}.json").write_text("{\n" + text + "\n}\n")
        np.savez_compressed(GOLDEN / f"{group}.npz", **{name: known.logits for name, known in computed.items()})
        print(f"{group}: {len(names)} cases")


if __name__ == "__main__":
    main()
