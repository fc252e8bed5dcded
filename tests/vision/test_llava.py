"""The projector of LLaVA in libmtmd gives the vectors of transformers (golden/, made by llava_features.py).

llama.cpp's graph has the class token of CLIP after the patches, without moving the positions, and then takes the rows
of a class token in front of the patches (tools/mtmd/models/llava.cpp). Tests move the positions in the checkpoint to
undo the first; the second loses the first patch.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from PIL import Image

from quantkit.api import ConvertOptions, convert
from quantkit.errors import QuantkitError
from quantkit.llamacpp.projector_session import file_features
from tests.helpers.command import quantkit
from tests.vision.cases import LLAVA
from tests.vision.expected import GOLDEN, expected, write_checkpoint
from tests.vision.llava_features import compute, pixels_of

LEAST = 0.9999


def class_last(name: str, values: np.ndarray) -> np.ndarray:
    return np.roll(values, -1, axis=0) if name.endswith("position_embedding.weight") else values


def written(
    name: str, folder: Path, change: Callable[[str, np.ndarray], np.ndarray] | None = None
) -> tuple[Path, Path]:
    """The text model and the projector of a case."""
    known = expected(name)["layout"]
    checkpoint = write_checkpoint(name, known, folder, **({"change": change} if change else {}))
    convert(checkpoint, ["f16"], folder, ConvertOptions(mmproj=("f16",), pre="smollm", logits=False))
    return folder / f"{name}-GGUF" / f"{name}-F16.gguf", folder / f"{name}-GGUF" / f"mmproj-{name}-F16.gguf"


def chunks_of(name: str, folder: Path, files: tuple[Path, Path]) -> list[np.ndarray]:
    image = folder / "image.png"
    Image.fromarray(pixels_of(name)).save(image)
    return file_features(*files, image)


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    assert ours.shape == theirs.shape
    values: np.ndarray = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    return values


def theirs_of(name: str) -> np.ndarray:
    vectors: np.ndarray = np.load(GOLDEN / f"{name}.npz")["vectors"]
    return vectors


@pytest.mark.usefixtures("libmtmd")
def test_a_siglip_tower_gives_every_vector(tmp_path: Path) -> None:
    (ours,) = chunks_of("llava-siglip", tmp_path, written("llava-siglip", tmp_path))
    assert cosines(ours, theirs_of("llava-siglip")).min() > LEAST


@pytest.mark.usefixtures("libmtmd")
def test_a_clip_tower_gives_the_vectors_but_for_the_place_of_the_class_token(tmp_path: Path) -> None:
    (ours,) = chunks_of("llava", tmp_path, written("llava", tmp_path, class_last))
    assert cosines(ours[:-1], theirs_of("llava")[1:]).min() > LEAST


@pytest.mark.usefixtures("libmtmd")
def test_llava_next_gives_the_vectors_of_every_tile(tmp_path: Path) -> None:
    """From two layers at once; llama.cpp has the tiles one after the other, then the small image, and no newlines."""
    name, packed = "llava-next", theirs_of("llava-next")
    files = written(name, tmp_path, class_last)
    *tiles, whole = chunks_of(name, tmp_path, files)
    assert whole.shape == (16, 64) and len(tiles) == 4
    rows = packed[16:].reshape(8, 9, 64)
    newline = next(tensor for tensor in gguf.GGUFReader(files[1]).tensors if tensor.name == "v.image_newline")
    assert (rows[:, -1] == newline.data).all()
    theirs = rows[:, :-1].reshape(2, 4, 2, 4, 64).swapaxes(1, 2).reshape(4, 16, 64)
    for mine, tile in zip(tiles, theirs, strict=True):
        assert cosines(mine[:-1], tile[1:]).min() > LEAST


@pytest.mark.parametrize(("name", "layers"), [("llava", [2]), ("llava-next", [1, 2]), ("llava-siglip", [3])])
def test_the_file_holds_the_layers_that_it_needs(name: str, layers: list[int], tmp_path: Path) -> None:
    reader = gguf.GGUFReader(written(name, tmp_path)[1])
    names = [tensor.name for tensor in reader.tensors]
    count = layers[-1]
    assert {int(name.split(".")[2]) for name in names if name.startswith("v.blk.")} == set(range(count))
    assert not any("post_ln" in name for name in names)
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert values["clip.projector_type"] == "mlp"
    assert values["clip.vision.block_count"] == count and values["clip.vision.feature_layer"] == layers
    assert values.get("clip.use_gelu") is (True if name == "llava-siglip" else None)
    if name == "llava-next":
        assert values["clip.vision.image_grid_pinpoints"] == [112, 112, 56, 112, 112, 56]


def test_a_buffer_of_positions_and_prefixes_of_later_releases_change_nothing(tmp_path: Path) -> None:
    known = expected("llava")["layout"]
    tower = "vision_tower.vision_model."
    later = {key.replace(tower, "model.vision_tower.").replace("multi_", "model.multi_"): known[key] for key in known}
    later = {
        re.sub(r"^(model\.)?language_model\.(model\.)?", "model.language_model.", key): later[key] for key in later
    }
    later = {key.replace("model.language_model.lm_head", "lm_head"): shape for key, shape in later.items()}
    buffer = {f"{tower}embeddings.position_ids": [1, 17]}
    projectors = []
    for folder, layout, values in (("now", later, known), ("then", known | buffer, known | buffer)):
        checkpoint = write_checkpoint("llava", layout, tmp_path / folder, values=values)
        convert(checkpoint, ["f16"], tmp_path / folder, ConvertOptions(mmproj=("f16",), pre="smollm", logits=False))
        projectors.append((tmp_path / folder / "llava-GGUF" / "mmproj-llava-F16.gguf").read_bytes())
    assert len(later.keys() - known.keys()) > len(known) // 2 and projectors[0] == projectors[1]


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "every vector": (
        {"vision_feature_select_strategy": "full"},
        "vision_feature_select_strategy is 'full', but llama.cpp runs LLaVA with this tower only with default",
    ),
    "no bias": ({"multimodal_projector_bias": False}, "multimodal_projector_bias is false, but llama.cpp runs LLaVA"),
    "another activation": (
        {"projector_hidden_act": "relu"},
        "projector_hidden_act is 'relu', but llama.cpp runs LLaVA",
    ),
    "a layer too many": ({"vision_feature_layer": -5}, "vision_feature_layer is -5, but the tower has 3 layers"),
    "descending layers": ({"vision_feature_layer": [2, 1]}, "llama.cpp takes layers in ascending order only"),
    "a text": ({"vision_feature_layer": "last"}, "vision_feature_layer is 'last', but the tower has 3 layers"),
}


@pytest.mark.parametrize("damage", REFUSALS)
def test_what_llama_cpp_does_not_run_is_one_sentence(damage: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint("llava", expected("llava")["layout"], tmp_path)
    settings, sentence = REFUSALS[damage]
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, **settings}))
    answer = quantkit("gguf", checkpoint, "-t", "q8_0", "--mmproj", "f16", "-o", tmp_path / "out", "--pre", "smollm")
    assert answer.code == 1 and sentence in answer.sentence
    assert not list((tmp_path / "out").rglob("*.gguf"))


def test_pinpoints_that_are_no_pairs_are_one_sentence(tmp_path: Path) -> None:
    checkpoint = write_checkpoint("llava-next", expected("llava-next")["layout"], tmp_path)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "image_grid_pinpoints": [56, 112]}))
    with pytest.raises(QuantkitError, match=r"image_grid_pinpoints is .* must be a list of pairs of sizes"):
        convert(checkpoint, ["f16"], tmp_path, ConvertOptions(mmproj=("f16",), pre="smollm", logits=False))


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [case.name for case in LLAVA])
def test_transformers_still_gives_the_stored_vectors(name: str, tmp_path: Path) -> None:
    layout, vectors = compute(name, tmp_path)
    assert layout == expected(name)["layout"]
    np.testing.assert_allclose(vectors, theirs_of(name), atol=1e-5)
