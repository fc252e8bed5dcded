"""Environment variables for a part of a test, in this process.

huggingface_hub reads its variables when it is imported. They are read anew here, by its own module of constants, and
every module of huggingface_hub that holds an older value gets the new one.
"""

import contextlib
import os
import re
import runpy
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from unittest.mock import patch

_HUB = "huggingface_hub"
_HERE = re.compile(r"(HF|OLLAMA|MODELSCOPE)_\w+|QUANTKIT_FAMILIES")


def applies_here(variables: Mapping[str, str]) -> bool:
    """Whether a command takes all these variables in this process: those of the hub by `environment` only."""
    return all(_HERE.fullmatch(name) for name in variables)


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the hub's client or of Ollama; those of the hub that are not given are unset."""
    hub = any(name.startswith("HF_") for name in variables)
    kept = {name: value for name, value in os.environ.items() if not (hub and name.startswith(("HF_", "HUGGING")))}
    with patch.dict(os.environ, {**kept, **variables}, clear=True), contextlib.ExitStack() as stack:
        if hub:
            stack.enter_context(_hub_constants())
        yield


def use_hub_variables() -> None:
    """Make huggingface_hub read the environment of this process, if it was imported before."""
    if _HUB in sys.modules:
        contextlib.ExitStack().enter_context(_hub_constants())


@contextlib.contextmanager
def _hub_constants() -> Iterator[None]:
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    read = runpy.run_path(str(constants.__file__), run_name=constants.__name__)
    changed = {name: read[name] for name, value in vars(constants).items() if name.isupper() and read[name] != value}
    before = {name: getattr(constants, name) for name in changed}
    try:
        _replace(before, changed)
        yield
    finally:
        _replace(changed, before)
        close_session()


def _replace(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Give a constant its new value in each module that imported it."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == _HUB and module is not None]
    for name, value in new.items():
        for module in modules:
            if name in vars(module) and vars(module)[name] == old[name]:
                setattr(module, name, value)
