"""Tiny models of every family, by group; each group's expected figures lie in ../golden (see with_transformers.py)."""

import importlib
import pkgutil
from functools import cache

from tests.families.models.case import TOKENS, VOCAB, Case, native_weights, weight
from tests.families.models.tokenizers import write_tokenizer

__all__ = ["TOKENS", "VOCAB", "Case", "all_cases", "forward_cases", "native_weights", "weight", "write_tokenizer"]


@cache
def all_cases() -> dict[str, tuple[str, Case]]:
    """Case name -> (group, case), of every module here that has CASES."""
    cases: dict[str, tuple[str, Case]] = {}
    for entry in pkgutil.iter_modules(__path__):
        for case in getattr(importlib.import_module(f"{__name__}.{entry.name}"), "CASES", ()):
            assert case.name not in cases, case.name
            cases[case.name] = (entry.name, case)
    return cases


def forward_cases() -> dict[str, tuple[str, Case]]:
    """The cases that our own forward runs."""
    return {name: (group, case) for name, (group, case) in all_cases().items() if case.forward}
