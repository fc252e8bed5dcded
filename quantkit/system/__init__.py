"""What Linux, macOS and Windows do differently: file descriptors, memory, processes, the processor.

No other room asks which system it runs on. A function here has one branch a system, or returns None where the system
gives no answer.
"""

import importlib
from typing import Any


def optional_module(name: str) -> Any:
    """A module of the standard library that only some systems have; None elsewhere."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
