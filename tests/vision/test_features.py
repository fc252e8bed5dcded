"""What the text model receives for an image: libmtmd with our projector, against transformers with the checkpoint."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quantkit.api import ConvertOptions, convert
from quantkit.llamacpp.projector_session import file_features
from tests.helpers.peer import REPOSITORY, newest_converter
from tests.vision.cases import PROCESSOR
from tests.vision.expected import expected, write_checkpoint

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]
# sizes that no image processor changes
SIZES = {
    "qwen3-vl": 128,
    "qwen2-vl": 112,
    "qwen2.5-vl": 224,
    "gemma3": 56,
    "gemma4": 120,
    "internvl": 56,
    "mistral3": 112,
    "pixtral": 112,
    "smolvlm": 64,
}
LEAST = 0.999


def _class_last(name: str, values: np.ndarray) -> np.ndarray:
    return np.roll(values, 1, axis=1) if name.endswith("position_embeddings") else values


@pytest.mark.usefixtures("libmtmd")
@pytest.mark.parametrize("name", SIZES)
def test_an_image_gives_the_vectors_of_transformers(
    name: str,
    tmp_path: Path,
) -> None:
    checkpoint = write_checkpoint(name, expected(name)["layout"], tmp_path)
    if name == "smolvlm":
        # one image without tiles
        settings = json.dumps({**PROCESSOR, "size": {"longest_edge": SIZES[name]}})
        (checkpoint / "preprocessor_config.json").write_text(settings)
    side = SIZES[name]
    pixels = np.random.RandomState(0).randint(0, 256, (side, side, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    np.save(tmp_path / "image.npy", pixels)
    convert(checkpoint, ["f16"], tmp_path, ConvertOptions(mmproj=("f16",), pre="smollm", logits=False))
    folder = tmp_path / f"{name}-GGUF"
    model, mmproj = folder / f"{name}-F16.gguf", folder / f"mmproj-{name}-F16.gguf"
    ours = np.concatenate(file_features(model, mmproj, tmp_path / "image.png"))
    if name == "internvl":
        # llama.cpp puts the class token after the patches, but leaves its position first (models/internvl.cpp)
        checkpoint = write_checkpoint(name, expected(name)["layout"], tmp_path / "rolled", change=_class_last)
    peer, out = newest_converter(), tmp_path / "theirs.npy"
    words = [str(peer.python), "-m", "tests.vision.features", str(checkpoint), str(tmp_path / "image.npy"), str(out)]
    environment = peer.environment() | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.load(out)
    if name in ("mistral3", "pixtral"):
        # llama.cpp has the token [IMG_BREAK] among the vectors, after every row but the last
        side = round(len(theirs) ** 0.5)
        breaks = np.arange(side, len(ours), side + 1)
        assert (ours[breaks] == ours[breaks[0]]).all()
        ours = np.delete(ours, breaks, axis=0)
    if name == "smolvlm":
        # the whole image, and its only tile, which is the same
        theirs = np.concatenate([theirs, theirs])
    assert ours.shape == theirs.shape
    cosines = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert cosines.min() > LEAST, cosines
