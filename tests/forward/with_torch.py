"""Run in an environment that has torch: the forward over tiny models on tensors, which numpy may not touch.

Arguments: a folder of NAME.npz, each a model's tensors and its config.json as a string; the file for the logits, NAME
-> (tokens, vocabulary); the token ids. The tensors of NAME.npz are read as numpy's and placed beside the input, or,
as `NAME held`, are torch's from the start.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

sys.path.append(os.environ["MORE_PACKAGES"])

from quantkit.families import find_architecture
from quantkit.forward.arrays import fetch, place
from quantkit.forward.forward import Decoder
from quantkit.forward.weights import Weights


def refuse(tensor: torch.Tensor, *_: Any) -> None:
    raise AssertionError(f"numpy took a tensor {tuple(tensor.shape)}")


def weights(tensors: dict[str, Any]) -> Weights:
    def rows(name: str, start: int, stop: int) -> Any:
        return tensors[name].reshape(-1, tensors[name].shape[-1])[start:stop]

    return Weights(tensors.__getitem__, rows, tensors.keys())


def logits(arrays: dict[str, Any], of_layers: dict[str, Any], config: dict[str, Any], device: str) -> torch.Tensor:
    decoder = Decoder(weights(arrays), config, find_architecture(config))
    with patch.object(torch.Tensor, "__array__", refuse), patch.object(torch.Tensor, "numpy", refuse):
        x, context = place(decoder.embed(TOKENS), torch.device(device)), decoder.context(TOKENS)
        for number in range(decoder.n_layers):
            x = decoder.layer(number, weights(of_layers))(x, context)
            assert (x.dtype, x.device.type) == (torch.float32, device)
        return decoder.logits(x)


FOLDER, OUT, TOKENS = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
results = {}
for path in sorted(FOLDER.glob("*.npz")):
    with np.load(path) as file:
        arrays = dict(file)
    config = json.loads(str(arrays.pop("config.json")))
    results[path.stem] = fetch(logits(arrays, arrays, config, "cpu"))
    if not any(name.endswith("_blocks") for name in arrays):
        tensors = {name: torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()}
        results[path.stem + " held"] = fetch(logits(arrays, tensors, config, "cpu"))
    if Decoder(weights(arrays), config, find_architecture(config)).architecture.experts is None:
        # a device without values: what is made on another one cannot be added to it (which experts are chosen would
        # have to be known)
        assert logits(arrays, arrays, config, "meta").shape == results[path.stem].shape
np.savez(OUT, **results)
