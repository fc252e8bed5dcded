"""Whole files of encoders: the newest converter, then llama-quantize to f32, f16 and q4_k_m, byte for byte."""

import json
import subprocess
from pathlib import Path

import pytest

from quantkit.gguf.file_types import FILE_TYPES
from tests.families.expected import write_checkpoint
from tests.families.models import all_cases
from tests.families.test_dense_modules import with_dense
from tests.families.test_reranker import reranker
from tests.helpers.command import quantkit
from tests.helpers.peer import REPOSITORY, newest_converter, peer_converter

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

TYPES = {"f32": 0, "f16": 1, "q4_k_m": 15}
# Cases that differ on purpose have keys in `differs`. T5's decoder is compared with its encoder.
ENCODERS = sorted(
    name
    for name, (group, case) in all_cases().items()
    if (case.encoder or group == "t5") and case.converter and not case.differs and case.vocabulary
)
_RAW = """
import json, sys
from pathlib import Path
from tests.families.with_transformers import convert
folder = Path(sys.argv[1])
convert(folder, Path(sys.argv[2]), sys.argv[3], hparams=json.loads((folder / "config.json").read_text()))
"""
"""The converter with config.json as it is: the class of transformers 5 stands for another kind of model (NomicBERT)."""


def compare(folder: Path, tmp_path: Path, pre: str, *options: str, raw: bool = False) -> None:
    """`options` are the converter's. llama-quantize also orders the tensors."""
    types = [word for kind in TYPES for word in ("-t", kind)]
    done = quantkit("gguf", folder, *types, *_pre(folder, pre), "-o", tmp_path)
    assert done.code == 0, done.stderr
    converter, converted = newest_converter(), tmp_path / "converted.gguf"
    command = [*converter.convert_command(folder, converted, "f32", pre=pre), *options]
    environment = converter.environment()
    if raw:
        command = [str(converter.python), "-c", _RAW, str(folder), str(converted), pre]
        environment["PYTHONPATH"] = f"{environment['PYTHONPATH']}:{converter.source}:{REPOSITORY}"
    subprocess.run(command, env=environment, check=True, capture_output=True)
    for kind, number in TYPES.items():
        peer_converter().quantize(converted, tmp_path / "theirs.gguf", number)
        ours = tmp_path / f"{folder.name}-GGUF" / f"{folder.name}-{FILE_TYPES[kind].label}.gguf"
        assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes(), kind


def _pre(folder: Path, pre: str) -> tuple[str, ...]:
    """The option --pre, which only a byte-level vocabulary takes."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    return ("--pre", pre) if model["type"] == "BPE" and not (folder / "tokenizer.model").exists() else ()


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_has_the_bytes_of_llama_cpps_two_steps(name: str, tmp_path: Path) -> None:
    case = all_cases()[name][1]
    compare(write_checkpoint(name, tmp_path / name), tmp_path, case.pre, raw=case.raw_config)


@pytest.mark.parametrize("tied", [True, False])
def test_a_reranker_has_the_bytes_of_llama_cpps_two_steps(tied: bool, tmp_path: Path) -> None:
    compare(reranker(tmp_path / "Tiny-Qwen3-Reranker", tied=tied), tmp_path, "smollm")


def test_dense_modules_have_the_bytes_of_llama_cpps_two_steps(tmp_path: Path) -> None:
    folder = write_checkpoint("embedding-gemma", tmp_path / "embedding-gemma")
    with_dense(folder)
    compare(folder, tmp_path, "default", "--sentence-transformers-dense-modules")
