"""`--mmproj` has the bytes of `convert_hf_to_gguf.py --mmproj` of the newest release, on tiny random models."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.command import quantkit
from tests.helpers.peer import REPOSITORY, newest_converter
from tests.helpers.tiny_tokenizers import write_byte_level_bpe
from tests.helpers.vision_models import NAMES, VOCAB

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]
TYPES = ("f16", "bf16", "q8_0")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, peer = tmp_path_factory.mktemp("vision"), newest_converter()
    command = [str(peer.python), "-m", "tests.helpers.vision_models", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, check=True)
    for name in NAMES:
        write_byte_level_bpe(folder / name, "smollm", VOCAB)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_projectors_have_the_converters_bytes(name: str, checkpoints: Path, tmp_path: Path) -> None:
    peer = newest_converter()
    words = [word for kind in TYPES for word in ("--mmproj", kind)]
    options = ("--pre", "smollm", "--converter", peer.source, "--no-logits")
    answer = quantkit("gguf", checkpoints / name, "-t", "q8_0", *words, "-o", tmp_path, *options)
    assert answer.code == 0, answer.stderr
    for kind in TYPES:
        theirs = tmp_path / f"theirs-{kind}.gguf"
        command = peer.convert_command(checkpoints / name, theirs, kind)
        subprocess.run([*command, "--mmproj"], env=peer.environment(), capture_output=True, check=True)
        ours = tmp_path / f"{name}-GGUF" / f"mmproj-{name}-{kind.upper()}.gguf"
        assert ours.read_bytes() == theirs.read_bytes(), kind
