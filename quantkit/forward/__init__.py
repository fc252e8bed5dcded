"""A decoder run straight from a checkpoint's tensors: the yardstick for a converted file, and what calibration runs.

It shares nothing with llama.cpp or with the mapping onto GGUF; its source is what transformers computes. An
architecture is a description (description.py, architectures.py) of parts (attention.py, feed_forward.py).
"""

from quantkit.forward.architectures import ARCHITECTURES
from quantkit.forward.forward import find_architecture, reference_logits

__all__ = ["ARCHITECTURES", "find_architecture", "reference_logits"]
