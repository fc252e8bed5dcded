"""Sources that cannot be converted: one sentence says what, where and what to do, and nothing has a final name."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.helpers.command import assert_nothing_final, quantkit
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("sound") / "model", variant="llama3", shards=2)


@pytest.fixture
def checkpoint(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def split(file: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(file: Path, header: dict[str, dict[str, object]], body: bytes) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def edit_json(file: Path, **changes: object) -> None:
    value = json.loads(file.read_text())
    value.update(changes)
    file.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def remove_a_shard(folder: Path) -> None:
    first_shard(folder).unlink()


def truncate_a_shard(folder: Path) -> None:
    file = first_shard(folder)
    file.write_bytes(file.read_bytes()[:-100])


def point_the_index_outside(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"][next(iter(value["weight_map"]))] = "../elsewhere/model.safetensors"
    index.write_text(json.dumps(value))


def claim_an_absurd_header(folder: Path) -> None:
    file = first_shard(folder)
    file.write_bytes(struct.pack("<Q", 2**60) + file.read_bytes()[8:])


def overlap_two_tensors(folder: Path) -> None:
    header, body = split(first_shard(folder))
    names = [name for name in header if name != "__metadata__"]
    same = [n for n in names if header[n]["shape"] == header[names[0]]["shape"]]
    a, b = same[:2] if len(same) > 1 else names[:2]
    header[b]["data_offsets"] = header[a]["data_offsets"]
    join(first_shard(folder), header, body)


def put_nan_into_a_tensor(folder: Path) -> None:
    file = next(f for f in sorted(folder.glob("*.safetensors")) if "model.layers.1.mlp.up_proj.weight" in split(f)[0])
    header, body = split(file)
    start, _ = header["model.layers.1.mlp.up_proj.weight"]["data_offsets"]  # type: ignore[misc]
    poison = np.array([np.nan], dtype=ml_dtypes.bfloat16).tobytes()
    join(file, header, body[: start + 40] + poison + body[start + 42 :])


def drop_a_tensor(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    name = "model.layers.1.self_attn.k_proj.weight"
    file = folder / value["weight_map"].pop(name)
    header, body = split(file)
    # The bytes stay, under a name that every reader skips: a hole would be another error.
    header["model.layers.1.self_attn.rotary_emb.inv_freq"] = header.pop(name)
    value["weight_map"]["model.layers.1.self_attn.rotary_emb.inv_freq"] = file.name
    join(file, header, body)
    index.write_text(json.dumps(value))


def widen_the_config(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=640)


def name_an_unknown_architecture(folder: Path) -> None:
    edit_json(folder / "config.json", architectures=["LlamoForCausalLM"])


def make_the_pre_tokenizer_unknown(folder: Path) -> None:
    file = folder / "tokenizer.json"
    value = json.loads(file.read_text())
    value["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[a-z]{1,3}|[^a-z]+"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    file.write_text(json.dumps(value))


def shrink_the_embedding(folder: Path) -> None:
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    edit_json(folder / "config.json", vocab_size=vocab - 8)


def break_the_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": [')


def remove_the_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()


def add_a_foreign_tensor(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=1)


BAD: dict[Callable[[Path], None], tuple[str, ...]] = {
    remove_a_shard: ("model-00001-of-00002.safetensors",),
    truncate_a_shard: ("model-00001-of-00002.safetensors",),
    point_the_index_outside: ("../elsewhere/model.safetensors",),
    claim_an_absurd_header: ("model-00001-of-00002.safetensors", "1152921504606846976"),
    overlap_two_tensors: ("model-00001-of-00002.safetensors", "overlap"),
    put_nan_into_a_tensor: ("model.layers.1.mlp.up_proj.weight", "NaN"),
    drop_a_tensor: ("model.layers.1.self_attn.k_proj.weight", "missing"),
    widen_the_config: ("config.json", "640", "512"),
    name_an_unknown_architecture: ("LlamoForCausalLM", "nearest by name are LlamaForCausalLM"),
    make_the_pre_tokenizer_unknown: ("--pre",),
    shrink_the_embedding: ("vocab", "768"),
    break_the_config: ("config.json",),
    remove_the_tokenizer: ("tokenizer",),
    add_a_foreign_tensor: ("model.layers.1.", "config.json"),
}


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__)
def test_a_bad_checkpoint_gets_one_sentence_naming_what_is_wrong(
    checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(checkpoint)
    out = tmp_path / "out"
    answer = quantkit("gguf", checkpoint, "-t", "q4_0", "-t", "q8_0", "-o", out, "--no-logits")
    assert answer.code in (1, 2), answer.stderr
    for words in BAD[damage]:
        assert words in answer.sentence
    assert answer.stdout == ""
    assert_nothing_final(out)


def test_an_adapter_folder_is_named_with_its_base_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "ORG/BASE"}))
    answer = quantkit("gguf", tmp_path, "-t", "q8_0", "-o", tmp_path / "out")
    assert answer.code == 1 and "an adapter (LoRA) for 'ORG/BASE'" in answer.sentence


def test_a_source_that_is_nothing_known_is_one_sentence(tmp_path: Path) -> None:
    assert quantkit("gguf", tmp_path / "absent.gguf").code == 1
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 64)
    answer = quantkit("gguf", tmp_path / "broken.gguf")
    assert answer.code == 1
    assert "broken.gguf" in answer.sentence
    answer = quantkit("gguf", tmp_path)
    assert answer.code == 1
    assert "holds GGUF files, not a checkpoint; pass one of those files" in answer.sentence


def test_no_network_and_no_cache_are_one_sentence(tmp_path: Path) -> None:
    here = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    answer = quantkit("gguf", "org/name", "-o", tmp_path, env=here)
    assert answer.code == 1
    assert "org/name" in answer.sentence
    offline = quantkit("gguf", "org/name", "-o", tmp_path, "--offline", env=here)
    assert offline.code == 1
    assert "org/name" in offline.sentence
