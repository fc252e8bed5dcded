"""Where weights come from: a folder or a hub repository becomes config, tokenizer files and lazily read tensors.

Everything is validated when a checkpoint is opened; afterwards only rows are read.
"""

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.sources import open_checkpoint
from quantkit.checkpoint.tensor import TensorInfo

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]
