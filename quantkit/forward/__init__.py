"""The forward pass of a decoder straight from a checkpoint's tensors: the reference for a converted file, and what
calibration runs.

It shares nothing with llama.cpp or with the mapping onto GGUF; its source is what transformers computes. A family
file describes its architecture (description.py) as attention (attention.py) and feed-forwards (feed_forward.py).
"""

from quantkit.forward.forward import Decoder

__all__ = ["Decoder"]
