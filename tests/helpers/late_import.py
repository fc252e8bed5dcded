"""Packages whose import takes a second, which the collection of all tests need not wait for."""

import importlib.util
import sys
from types import ModuleType

import pytest


def imported_when_used(name: str) -> ModuleType:
    """The package, imported when an attribute is read; without it the module of the tests is skipped."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        pytest.skip(f"{name} is not installed", allow_module_level=True)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
