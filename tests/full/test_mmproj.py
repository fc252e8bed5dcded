"""`--mmproj` of a model without rules of ours has the bytes of `convert_hf_to_gguf.py --mmproj` of the newest release.

tests/vision has the projectors that quantkit writes itself.
"""

import hashlib
import subprocess
from pathlib import Path

import pytest

from tests.helpers.command import quantkit
from tests.helpers.peer import newest_converter
from tests.vision.bridged import BRIDGED
from tests.vision.expected import TYPES, layouts_of, write_checkpoint

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]

NAMES = [case.name for case in BRIDGED]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[int]]]:
    return layouts_of(NAMES, tmp_path_factory.mktemp("layouts"))


@pytest.mark.parametrize("name", NAMES)
def test_projectors_have_the_converters_bytes(
    name: str, layouts: dict[str, dict[str, list[int]]], tmp_path: Path
) -> None:
    peer = newest_converter()
    checkpoint = write_checkpoint(name, layouts[name], tmp_path)
    words = [word for kind in TYPES for word in ("--mmproj", kind)]
    options = ("--pre", "smollm", "--converter", peer.source, "--no-logits")
    answer = quantkit("gguf", checkpoint, "-t", "q8_0", *words, "-o", tmp_path, *options)
    assert answer.code == 0, answer.stderr
    for kind in TYPES:
        theirs = tmp_path / f"theirs-{kind}.gguf"
        command = peer.convert_command(checkpoint, theirs, kind)
        subprocess.run([*command, "--mmproj"], env=peer.environment(), capture_output=True, check=True)
        ours = tmp_path / f"{name}-GGUF" / f"mmproj-{name}-{kind.upper()}.gguf"
        assert _sha256(ours) == _sha256(theirs), kind


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
