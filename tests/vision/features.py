"""What classes of transformers give the text model for an image. Runs in a peer's venv.

    <peer's python> -m tests.vision.features CHECKPOINT IMAGE.npy OUT.npy

IMAGE.npy: (height, width, 3) uint8. OUT.npy: (n_tokens, width) float32; DeepStack's vectors follow each token's own.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    checkpoint, image, out = map(Path, sys.argv[1:])
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    inputs = {name: torch.from_numpy(value) for name, value in _inputs(checkpoint, np.load(image)).items()}
    with torch.no_grad():
        result = model.get_image_features(**inputs)
    np.save(out, _vectors(result))


def _vectors(result: Any) -> np.ndarray:
    """The projected vectors, whatever the class returns."""
    pooled = result.pooler_output if hasattr(result, "pooler_output") else result
    # one entry an image where a list holds them
    parts = [part[0] if isinstance(part, list | tuple) else part for part in (pooled, *_deepstack(result))]
    return np.concatenate([part.reshape(-1, part.shape[-1]).float().numpy() for part in parts], axis=-1)


def _deepstack(result: Any) -> tuple[Any, ...]:
    return tuple(getattr(result, "deepstack_features", None) or ())


def _inputs(checkpoint: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    """Pixel values of an image whose size needs no change, in the layout that the class takes."""
    settings: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (checkpoint / name).exists():
            read = json.loads((checkpoint / name).read_text())
            settings |= read | read.get("image_processor", {})
    mean, std = (np.asarray(settings[name], np.float32) for name in ("image_mean", "image_std"))
    pixels = ((image.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)
    vision = json.loads((checkpoint / "config.json").read_text())["vision_config"]
    kind, sizes = vision.get("model_type"), np.array([pixels.shape[1:]])
    if (checkpoint / "config.json").read_text().count("image_grid_pinpoints"):
        return {"pixel_values": _tiles(pixels, vision["image_size"])[None], "image_sizes": sizes}
    if kind == "pixtral":
        return {"pixel_values": pixels[None], "image_sizes": sizes}
    if kind in ("smolvlm_vision", "idefics3_vision"):
        return {"pixel_values": pixels[None, None]}
    if kind == "gemma4_vision":
        patch = vision["patch_size"]
        rows, columns = sizes[0] // patch
        flat = pixels.reshape(3, rows, patch, columns, patch).transpose(1, 3, 2, 4, 0).reshape(1, rows * columns, -1)
        y, x = np.divmod(np.arange(rows * columns), columns)
        return {"pixel_values": flat, "image_position_ids": np.stack([x, y], -1)[None]}
    if "spatial_merge_size" not in vision:
        return {"pixel_values": pixels[None]}
    patch, merge = vision["patch_size"], vision["spatial_merge_size"]
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    # patches in squares that are merged, each with its image twice: Qwen2VLImageProcessor
    frames = np.stack([pixels, pixels]).reshape(1, 2, 3, rows // merge, merge, patch, columns // merge, merge, patch)
    flat = frames.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(rows * columns, -1)
    return {"pixel_values": flat, "image_grid_thw": np.array([[1, rows, columns]])}


def _tiles(pixels: np.ndarray, side: int) -> np.ndarray:
    """The image in a small size (every so many pixels), then its tiles row by row: LlavaNextImageProcessor."""
    rows, columns = pixels.shape[1] // side, pixels.shape[2] // side
    tiles = pixels.reshape(3, rows, side, columns, side).transpose(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
    return np.concatenate([pixels[None, :, ::rows, ::columns], tiles])


if __name__ == "__main__":
    main()
