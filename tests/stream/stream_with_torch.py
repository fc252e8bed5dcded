"""Run in an environment that has torch: the stream with its samples on a device of torch, which is the CPU.

Arguments: a folder of checkpoints, and their names. Writes NAME.npz there: of each input its sums, and the last states.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantkit.checkpoint import open_checkpoint
from quantkit.families.base.native import Native
from quantkit.stream.sample_states import StreamOptions
from tests.stream.test_stream import streamed


def main(folder: Path, names: list[str]) -> None:
    for name in names:
        results: dict[str, Any] = {}
        with open_checkpoint(str(folder / name)) as checkpoint:
            kept, layers, results["last"] = streamed(
                Native(checkpoint), folder / "with-torch", StreamOptions(device=torch.device("cpu"))
            )
        for layer in layers:
            for group in layer.inputs:
                statistics, key = kept.statistics[layer.number][group.key], f"{layer.number} {group.key}"
                results[f"{key} gram"], results[f"{key} squares"] = statistics.gram, statistics.squares
                results[f"{key} tokens"] = [statistics.tokens, statistics.gram_tokens]
        np.savez(folder / f"{name}.npz", **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
