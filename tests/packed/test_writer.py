"""Folders as they are written: the safetensors library reads them, kills leave them resumable, renames are whole."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from quantkit.errors import CheckpointError, OutputError, UnsupportedError
from quantkit.files import partial_path, refuse_existing
from quantkit.packed.layout import INDEX, Stated, index_json, plan_folder
from quantkit.packed.writer import FolderWriter, publish, small_files

TENSORS: list[Stated] = [
    ("model.embed_tokens.weight", "F16", (5, 3)),
    ("model.layers.0.q_proj.qweight", "I32", (8, 4)),
    ("model.layers.0.q_proj.scales", "F16", (2, 32)),
    ("model.layers.0.norm.weight", "BF16", (7,)),
    ("model.layers.1.q_proj.qweight", "I32", (8, 4)),
    ("lm_head.weight", "F32", (3, 3)),
]
CONFIG = {"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "awq"}}


def values(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    kinds = {"F16": np.float16, "F32": np.float32, "BF16": ml_dtypes.bfloat16}
    return {
        name: rng.integers(-(2**31), 2**31, shape).astype(np.int32)
        if dtype == "I32"
        else rng.standard_normal(shape).astype(kinds[dtype])
        for name, dtype, shape in TENSORS
    }


def write_all(folder: Path, max_shard: int, order: int = 1) -> None:
    with FolderWriter(folder, plan_folder(TENSORS, max_shard)) as writer:
        for name, array in list(values().items())[::order]:
            writer.write(name, array)
        (folder.parent / "source").mkdir(exist_ok=True)
        writer.finish(CONFIG, folder.parent / "source")


@pytest.mark.parametrize("max_shard", [10**9, 200, 1])
def test_the_safetensors_library_reads_every_tensor_back(max_shard: int, tmp_path: Path) -> None:
    write_all(tmp_path / "out", max_shard)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    tensors: dict[str, tuple[str, Any]] = {}
    for file in files:
        with safe_open(file, framework="np") as opened:
            assert opened.metadata() == {"format": "pt"}
            # numpy alone has no bf16: its bytes are compared below
            names = list(opened.keys())
            tensors |= {name: (file.name, opened.get_slice(name)) for name in names}
            for name in names:
                if opened.get_slice(name).get_dtype() != "BF16":
                    assert np.array_equal(opened.get_tensor(name), values()[name])
    assert {name: (kind.get_dtype(), tuple(kind.get_shape())) for name, (_, kind) in tensors.items()} == {
        name: (dtype, shape) for name, dtype, shape in TENSORS
    }
    if len(files) > 1:
        index = json.loads((tmp_path / "out" / INDEX).read_text())
        assert index["weight_map"] == {name: file for name, (file, _) in tensors.items()}
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in values().values())


def test_a_bfloat16_tensor_is_at_its_place(tmp_path: Path) -> None:
    write_all(tmp_path / "out", 10**9)
    (shard,) = plan_folder(TENSORS)
    place = next(place for place in shard.places if place.dtype == "BF16")
    data = (tmp_path / "out" / shard.name).read_bytes()[place.offset : place.offset + place.nbytes]
    assert data == values()[place.name].tobytes()


def test_every_tensor_is_aligned_to_its_elements() -> None:
    for shard in plan_folder(TENSORS):
        for place in shard.places:
            assert place.offset % {"F16": 2, "BF16": 2, "I32": 4, "F32": 4}[place.dtype] == 0


def test_tensors_of_a_layer_stay_together_in_their_order() -> None:
    tensors: list[Stated] = [(f"layer.{i}.{name}", "I32", (10,)) for i in range(6) for name in "abc"]
    shards = plan_folder(tensors, 240)
    assert [place.name for shard in shards for place in shard.places] == [name for name, _, _ in tensors]
    assert [shard.name for shard in shards] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert index_json(plan_folder(tensors, 10**9)) is None


def test_the_order_of_writing_changes_no_byte(tmp_path: Path) -> None:
    write_all(tmp_path / "a", 200)
    write_all(tmp_path / "b", 200, order=-1)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_writer_after_a_kill_keeps_what_was_written(tmp_path: Path) -> None:
    shards, everything = plan_folder(TENSORS, 200), values()
    first, *rest = everything
    with FolderWriter(tmp_path, shards) as writer:
        assert not writer.resumed
        writer.write(first, everything[first])
    with FolderWriter(tmp_path, shards, keep=True) as writer:
        assert writer.resumed
        for name in rest:
            writer.write(name, everything[name])
        (tmp_path / "source").mkdir()
        writer.finish(CONFIG, tmp_path / "source")
    write_all(tmp_path / "whole", 200)
    for shard in shards:
        assert (tmp_path / shard.name).read_bytes() == (tmp_path / "whole" / shard.name).read_bytes()


@pytest.mark.parametrize("harm", ["cut", "other header", "missing"])
def test_files_that_are_not_as_planned_are_made_anew(harm: str, tmp_path: Path) -> None:
    shards = plan_folder(TENSORS, 200)
    FolderWriter(tmp_path, shards).close()
    victim = tmp_path / shards[1].name
    if harm == "cut":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif harm == "other header":
        victim.write_bytes(b"\0" * shards[1].size)
    else:
        victim.unlink()
    with FolderWriter(tmp_path, shards, keep=True) as writer:
        assert not writer.resumed
    assert victim.read_bytes().startswith(shards[1].header)


def test_leftovers_of_another_layout_are_removed(tmp_path: Path) -> None:
    FolderWriter(tmp_path, plan_folder(TENSORS, 1)).close()
    FolderWriter(tmp_path, plan_folder(TENSORS)).close()
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_rows_written_in_pieces_are_the_whole_and_so_is_their_hash(tmp_path: Path) -> None:
    weight = np.arange(40, dtype=np.float32).reshape(10, 4)
    tensors: list[Stated] = [("w", "F16", (10, 4)), ("v", "F16", (10, 4))]
    with FolderWriter(tmp_path, plan_folder(tensors)) as writer:
        writer.write("w", weight)
        for start in (0, 3, 6):
            writer.write("v", weight[start : start + (3 if start < 6 else 4)], start)
        assert writer.sha256("w") == writer.sha256("v")
    with safe_open(tmp_path / "model.safetensors", framework="np") as opened:
        assert np.array_equal(opened.get_tensor("v"), weight)


def test_a_value_beyond_float16_is_told_with_the_way_out(tmp_path: Path) -> None:
    with FolderWriter(tmp_path, plan_folder([("model.norm.weight", "F16", (4,))])) as writer:
        with pytest.raises(UnsupportedError, match=r"model\.norm\.weight has the value 70000, .* --dtype bfloat16"):
            writer.write("model.norm.weight", np.array([1, -70000, 3, 4], np.float32))
        with pytest.raises(CheckpointError, match=r"model\.norm\.weight would contain NaN or infinity"):
            writer.write("model.norm.weight", np.array([1, np.nan, 3, 4], np.float32))


def test_only_small_files_of_the_model_are_taken_along(tmp_path: Path) -> None:
    taken = {
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
        *("merges.txt", "tokenizer.model", "generation_config.json", "chat_template.jinja", "qwen.tiktoken"),
        *("LICENSE", "LICENSE.txt", "NOTICE", "additional_chat_templates/tool_use.jinja"),
    }
    left = {
        *("config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "README.md"),
        *("tokenization_qwen.py", "modeling_qwen.py", "training_args.bin", "optimizer.pt", "model.gguf", "LICENSE.py"),
        *("quantkit.json", ".gitattributes", "additional_chat_templates/notes.txt"),
    }
    (tmp_path / "additional_chat_templates").mkdir()
    for name in taken | left:
        (tmp_path / name).write_text(name)
    assert set(small_files(tmp_path)) == taken


def test_a_folder_that_is_there_is_only_replaced_by_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="add --force"):
        refuse_existing([tmp_path / "out"], force=False)
    refuse_existing([tmp_path / "out"], force=True)


@pytest.mark.parametrize("killed", ["before", "between", "after", "in removal"])
def test_publishing_ends_what_a_kill_interrupted(killed: str, tmp_path: Path) -> None:
    final, partial = tmp_path / "M-AWQ", partial_path(tmp_path / "M-AWQ")
    replaced = tmp_path / "M-AWQ.replaced"
    for folder, text in ((final, "old"), (partial, "new")):
        folder.mkdir()
        (folder / "config.json").write_text(text)
    if killed in ("between", "after", "in removal"):
        final.rename(replaced)
    if killed in ("after", "in removal"):
        partial.rename(final)
    if killed == "in removal":
        (replaced / "config.json").unlink()
    publish(final)
    assert [path.name for path in tmp_path.iterdir()] == ["M-AWQ"]
    assert (final / "config.json").read_text() == "new"


def test_a_disk_that_cannot_hold_the_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="choose another folder with -o"):
        FolderWriter(tmp_path, plan_folder([("w", "F16", (1 << 50,))]))


def test_a_header_is_what_json_writes_without_spaces_for_any_name() -> None:
    names = ("model.layers.0.weight", 'a "quoted" \\ name', "层.权重", "tab\t")
    stated = [(name, "F16", (2, count + 1)) for count, name in enumerate(names)]
    (shard,) = plan_folder(stated)
    text = shard.header[8:].rstrip(b" ")
    document = json.loads(text)
    assert text == json.dumps(document, separators=(",", ":")).encode()
    assert set(document) == {"__metadata__", *names} and document["tab\t"]["shape"] == [2, 4]
    assert [document[place.name]["data_offsets"][0] + len(shard.header) for place in shard.places] == [
        place.offset for place in shard.places
    ]
