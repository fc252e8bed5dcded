"""LoRA adapters of PEFT: read, and merged into the weights of a checkpoint while they are read."""

from quantkit.adapters.adapter import Adapter, AdapterRequest, open_adapter
from quantkit.adapters.applying import apply_adapters

__all__ = ["Adapter", "AdapterRequest", "apply_adapters", "open_adapter"]
