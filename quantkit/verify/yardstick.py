"""The source's own logits: the reference forward over the checkpoint as transformers would have it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint import Checkpoint
from quantkit.families import canonical_checkpoint, find_family, read_mapped
from quantkit.forward import find_architecture, reference_logits


def source_logits(checkpoint: Checkpoint, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Logits (len(tokens), vocabulary) of a checkpoint of any family, in the memory of a slice of a matrix.

    Raises UnsupportedError where the reference forward does not know the architecture or a setting of config.json.
    """
    family = find_family(checkpoint.config)
    config, mapped = canonical_checkpoint(family, family.sizes(checkpoint.config), checkpoint.tensors, nearest=True)
    find_architecture(config)
    tensors = {tensor.name: tensor for tensor in mapped}

    def rows(name: str, start: int, stop: int) -> NDArray[Any]:
        tensor = tensors[name]
        first = start - start % tensor.row_step
        last = min(-(-stop // tensor.row_step) * tensor.row_step, tensor.part_rows * len(tensor.parts))
        return read_mapped(checkpoint.read_rows, tensor, first, last)[start - first : stop - first]

    def whole(name: str) -> NDArray[Any]:
        tensor = tensors[name]
        return rows(name, 0, tensor.part_rows * len(tensor.parts)).reshape(tensor.shape)

    return reference_logits(whole, config, tokens, rows=rows, names=tensors.keys())
