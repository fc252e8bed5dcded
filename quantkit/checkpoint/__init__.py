"""Checkpoints in a folder or a hub repository: config, tokenizer files, and tensors that are read by rows.

Everything is validated when a checkpoint is opened; afterwards only rows are read.
"""

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.sources import Access, Checks, open_checkpoint
from quantkit.checkpoint.tensor import TensorInfo

__all__ = ["Access", "Checkpoint", "Checks", "TensorInfo", "open_checkpoint"]
