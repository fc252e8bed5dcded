"""The forward of a runtime that rounds activations."""

from collections.abc import Sequence

import numpy as np

from quantkit.families import find_architecture
from quantkit.forward import Decoder
from quantkit.forward.weights import RoundInput, Weights
from quantkit.packed.reader import QuantizedFolder


def runtime_logits(opened: QuantizedFolder, tokens: Sequence[int], rounding: RoundInput | None) -> np.ndarray:
    """Logits of a folder's dequantized weights, with this rounding of the linears' inputs."""
    weights = Weights(opened.whole, opened.rows, opened.names, rounding)
    return Decoder(weights, opened.config, find_architecture(opened.config)).run(tokens)
