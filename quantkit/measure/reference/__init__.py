"""The logits of a checkpoint by a plain numpy forward: the yardstick for a converted file.

It shares nothing with llama.cpp or with the mapping onto GGUF; its source is what transformers computes. An
architecture is a description (description.py, architectures.py) of parts (attention.py, feed_forward.py).
"""

from quantkit.measure.reference.architectures import ARCHITECTURES
from quantkit.measure.reference.forward import find_architecture, reference_logits

__all__ = ["ARCHITECTURES", "find_architecture", "reference_logits"]
