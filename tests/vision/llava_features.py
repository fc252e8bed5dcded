"""What transformers' classes of LLaVA give the text model for an image; the vectors lie in golden/.

    python -m tests.vision.llava_features NAME ...

makes them anew (of all cases without arguments), with transformers 5: NAME.json has the `layout` of the checkpoint,
NAME.npz the vectors, (n_tokens, width) float32.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.helpers.peer import REPOSITORY, newest_converter
from tests.vision.cases import LLAVA
from tests.vision.expected import GOLDEN, layouts_of, write_checkpoint

SIDES = {"llava": 56, "llava-siglip": 56, "llava-next": 112}
"""Sides of the images, in pixels: sizes that no image processor changes."""


def pixels_of(name: str) -> np.ndarray:
    """The image of a case: (height, width, 3) uint8."""
    return np.random.RandomState(0).randint(0, 256, (SIDES[name], SIDES[name], 3)).astype(np.uint8)


def compute(name: str, folder: Path) -> tuple[dict[str, list[int]], np.ndarray]:
    """The layout and the vectors of a case; its checkpoint is folder/NAME."""
    layout = layouts_of([name], folder)[name]
    checkpoint, image, out = write_checkpoint(name, layout, folder), folder / "image.npy", folder / "features.npy"
    np.save(image, pixels_of(name))
    peer = newest_converter()
    words = [str(peer.python), "-m", "tests.vision.features", str(checkpoint), str(image), str(out)]
    environment = peer.environment() | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return layout, np.load(out)


def main() -> None:
    for name in sys.argv[1:] or [case.name for case in LLAVA]:
        with tempfile.TemporaryDirectory() as folder:
            layout, vectors = compute(name, Path(folder))
        (GOLDEN / f"{name}.json").write_text(json.dumps({"layout": layout}, separators=(",", ":")) + "\n")
        np.savez_compressed(GOLDEN / f"{name}.npz", vectors=vectors)
        print(name, vectors.shape)


if __name__ == "__main__":
    main()
