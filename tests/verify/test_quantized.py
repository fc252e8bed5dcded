"""The checks of a quantized folder: a sound one passes, and each kind of harm is found by the check meant for it."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.families.base.native import Native
from quantkit.outputs.packed_folders import FolderPlan
from quantkit.quant.grid import Grid
from quantkit.verify.check import Check
from quantkit.verify.quantized import LOGIT_FLOOR, Written, verify_folder
from quantkit.verify.source_logits import SourceLogits
from tests.families.expected import write_checkpoint
from tests.helpers.real import smollm2_or_skip
from tests.helpers.tiny import tiny_llama
from tests.packed.folders import Hashes, planned, write_planned


@dataclass(frozen=True)
class Made:
    native: Native
    plan: FolderPlan
    hashes: Hashes

    def verify(self, folder: Path | None = None, *, logits: bool | None = True) -> list[Check]:
        checked = verify_folder(folder or self.plan.folder, self.plan, self.native, Written(self.hashes), logits=logits)
        return list(checked.checks)


def failed(checks: list[Check]) -> str:
    """The one check that failed, and why."""
    (failure,) = [check for check in checks if check.status == "failed"]
    return f"{failure.name}: {failure.detail}"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("verified")
    with open_checkpoint(str(tiny_llama(folder / "m", variant="llama3"))) as checkpoint:
        native = Native(checkpoint)
        plan = planned(native, folder / "M-AWQ", max_shard=600_000)
        yield Made(native, plan, write_planned(plan, native))


@pytest.mark.parametrize(
    ("model", "method", "bits"),
    [
        *(("llama", method, bits) for method in ("awq", "gptq") for bits in (2, 3, 4, 8)),
        *(
            ("mixtral", "awq", 4),
            ("qwen2moe", "awq", 4),
            ("qwen2moe", "gptq", 2),
            ("gpt2", "gptq", 4),
            ("gpt2", "awq", 8),
        ),
    ],
)
def test_a_sound_folder_passes_every_check(model: str, method: str, bits: int, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "m") if model == "llama" else write_checkpoint(model, tmp_path / "m")
    with open_checkpoint(str(source)) as checkpoint:
        native = Native(checkpoint)
        plan = planned(native, tmp_path / "q", method, Grid(bits, 16, method == "gptq"))
        made = Made(native, plan, write_planned(plan, native))
        checks = made.verify()
    assert [check.name for check in checks] == ["structure", "bytes", "rows", "logits"]
    assert {check.status for check in checks} == {"passed"}, checks


def test_smollm2_passes_and_says_how_near_it_is(tmp_path: Path) -> None:
    with open_checkpoint(str(smollm2_or_skip())) as checkpoint:
        native = Native(checkpoint)
        plan = planned(native, tmp_path / "q", grid=Grid(4, 64))
        checks = Made(native, plan, write_planned(plan, native)).verify(logits=None)
    assert {check.status for check in checks} == {"passed"}, checks
    correlation = float(checks[-1].detail.split("correlation ")[1].split()[0])
    assert correlation > 0.8 > LOGIT_FLOOR[4]


def test_logits_can_be_left_out(sound: Made) -> None:
    assert sound.verify(logits=False)[-1] == Check("logits", "skipped", "not requested")


def test_the_sources_logits_are_computed_once_for_several_folders(sound: Made) -> None:
    source = SourceLogits(sound.native.checkpoint)
    first = source.get()
    assert source.get() is first
    checked = verify_folder(
        sound.plan.folder, sound.plan, sound.native, Written(sound.hashes), logits=True, source=source
    )
    assert checked.checks[-1].status == "passed" and checked.logit_correlation


def _change(folder: Path, tensor: str, change: Callable[[np.ndarray], object], made: Made) -> None:
    """Change a tensor's bytes in its file."""
    shard, place = next((s, p) for s in made.plan.shards for p in s.places if p.name == tensor)
    kind = {"I32": "<u4", "F16": "<f2", "BF16": "<u2"}[place.dtype]
    data = np.memmap(folder / shard.name, kind, "r+", place.offset, place.shape)
    change(data)
    data.flush()


@pytest.fixture
def harmed(sound: Made, tmp_path: Path) -> Path:
    return shutil.copytree(sound.plan.folder, tmp_path / "harmed")


DOWN = "model.layers.1.mlp.down_proj"


def test_a_flipped_bit_is_found(sound: Made, harmed: Path) -> None:
    _change(harmed, f"{DOWN}.qweight", lambda words: words.__setitem__((3, 2), words[3, 2] ^ 1), sound)
    assert failed(sound.verify(harmed)).startswith(f"bytes: tensor {DOWN}.qweight of model-0000")


def test_a_scale_that_is_not_finite_is_found(sound: Made, harmed: Path) -> None:
    _change(harmed, f"{DOWN}.scales", lambda scales: scales.__setitem__((0, 0), np.inf), sound)
    failure = failed(sound.verify(harmed))
    assert failure.startswith(f"bytes: tensor {DOWN}.scales of model-0000") and failure.endswith(
        "contains NaN or infinity"
    )


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "model-00001-of-00003.safetensors").unlink(), "lacks its weight file"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is not what was written"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{}"), "tokenizer_config.json is not what"),
    ],
)
def test_a_file_that_is_missing_or_changed_is_found(
    harm: Callable[[Path], object], message: str, sound: Made, harmed: Path
) -> None:
    assert len(sound.plan.shards) == 3
    harm(harmed)
    failure = failed(sound.verify(harmed))
    assert failure.startswith("structure: ") and message in failure


@pytest.mark.parametrize(
    ("key", "value"), [("rope_theta", 1.0), ("quantization_config", {"modules_to_not_convert": None}), ("more", 1)]
)
def test_a_config_that_says_something_else_is_found(key: str, value: object, sound: Made, harmed: Path) -> None:
    config = json.loads((harmed / "config.json").read_text())
    config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (harmed / "config.json").write_text(json.dumps(config))
    assert f"config.json has {key} " in failed(sound.verify(harmed))


def test_rows_out_of_place_are_found_though_written_as_meant(sound: Made, harmed: Path) -> None:
    # all inputs of a linear in the opposite order, and hashes to match
    _change(harmed, f"{DOWN}.qweight", lambda words: words.__setitem__(slice(None), words[::-1].copy()), sound)
    failure = failed(replace(sound, hashes=_hashes(sound, harmed)).verify(harmed))
    assert failure.startswith(f"rows: linear {DOWN} has the source's signs in")


def test_logits_far_from_the_sources_fail(sound: Made, harmed: Path) -> None:
    # what no check of linears sees
    norms = ["model.layers.0.input_layernorm.weight", "model.norm.weight"]
    for norm in norms:
        _change(harmed, norm, lambda values: values.__imul__(np.where(np.arange(len(values)) % 2, -1, 1)), sound)
    failure = failed(replace(sound, hashes=_hashes(sound, harmed)).verify(harmed))
    assert failure.startswith("logits: the logits of AWQ have a correlation of")


def test_logits_that_are_not_finite_fail(sound: Made, tmp_path: Path) -> None:
    plan = planned(sound.native, tmp_path / "harmed", dtype="bfloat16")
    made = Made(sound.native, plan, write_planned(plan, sound.native))
    # bfloat16's 3e38: finite, until the head multiplies it
    _change(plan.folder, "model.norm.weight", lambda values: values.fill(0x7F61), made)
    failure = failed(replace(made, hashes=_hashes(made, plan.folder)).verify())
    assert failure == "logits: harmed gives logits that are not finite"


def _hashes(made: Made, folder: Path) -> Hashes:
    return {
        place.name: sha256((folder / shard.name).read_bytes()[place.offset :][: place.nbytes]).hexdigest()
        for shard in made.plan.shards
        for place in shard.places
    }
