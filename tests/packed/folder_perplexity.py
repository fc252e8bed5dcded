"""Perplexity of weights over windows of real text, by quantkit's own forward: one judge for every quantization."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from quantkit.families import find_architecture
from quantkit.families.base.native import Native
from quantkit.forward.forward import Decoder
from quantkit.forward.weights import Weights
from quantkit.packed.reader import open_quantized
from quantkit.texts.samples import cut_samples
from quantkit.tokenizer import hf_token_ids

Array = NDArray[np.float32]
Tensors = dict[str, Array]


def source_weights(native: Native) -> Tensors:
    """All tensors of a checkpoint in float32."""
    return {name: np.array(native.whole(name), np.float32) for name in native.tensors}


def folder_weights(folder: Path) -> Tensors:
    """All tensors of a quantized folder as a runtime sees them, in float32."""
    with open_quantized(folder) as opened:
        return {name: np.array(opened.whole(name), np.float32) for name in opened.names}


def windows(checkpoint: Path, text: str, count: int, length: int = 512) -> NDArray[np.int32]:
    """The first `count` windows of a text in the checkpoint's tokens, int32 (count, length)."""
    ids = np.array(hf_token_ids(checkpoint, [text])[0], np.int32)
    return cut_samples(ids, count, length, None, spread=False, name="text")[0]


def perplexity(config: Mapping[str, Any], tensors: Tensors, tokens: NDArray[np.int32], threads: int = 2) -> float:
    """exp of the mean negative log-likelihood of every token of each window but its first."""
    decoder = Decoder(Weights(tensors.__getitem__, _rows(tensors), tensors.keys()), config, find_architecture(config))

    def loss(window: NDArray[np.int32]) -> float:
        ids = window.tolist()
        x, context = decoder.embed(ids), decoder.context(ids)
        for number in range(decoder.n_layers):
            x = decoder.layer(number)(x, context)
        logits = decoder.logits(x[:-1]).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        own = logits[np.arange(len(window) - 1), window[1:]]
        return float((np.log(np.exp(logits).sum(axis=-1)) - own).mean())

    with threadpool_limits(limits=1), ThreadPoolExecutor(threads) as pool:
        return float(np.exp(np.mean(list(pool.map(loss, tokens)))))


def _rows(tensors: Tensors) -> Any:
    return lambda name, start, stop: tensors[name].reshape(-1, tensors[name].shape[-1])[start:stop]
