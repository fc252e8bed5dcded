"""The source's own logits: the reference forward over the checkpoint as transformers would have it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint import Checkpoint
from quantkit.families import reference_logits
from quantkit.families.base.native import Native


def source_logits(checkpoint: Checkpoint, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Logits (len(tokens), vocabulary) of a checkpoint of any family, in the memory of a slice of a matrix.

    Raises UnsupportedError where the reference forward does not know the architecture or a setting of config.json.
    """
    return native_logits(Native(checkpoint, nearest=True), tokens)


def native_logits(native: Native, tokens: Sequence[int]) -> NDArray[np.float32]:
    """`source_logits` of a checkpoint that is opened in its native form."""
    return reference_logits(native.whole, native.config, tokens, rows=native.rows, names=native.tensors.keys())
