"""The checks catch what they are for: files damaged after the pass, and mappings that are wrong from the start."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import quantkit.families.base.cuts
import quantkit.verify.files
import quantkit.verify.source_logits
from quantkit.checkpoint import open_checkpoint
from quantkit.cli import main
from quantkit.conversion.gguf_pass import run_pass
from quantkit.files import partial_path
from quantkit.gguf.file_types import file_type
from quantkit.gguf.layout import Slot
from quantkit.journal import Journal
from quantkit.outputs.gguf_files import GgufPlan, GgufRequest, plan_gguf
from quantkit.outputs.model import model_from_checkpoint
from quantkit.progress import SILENT
from quantkit.verify import verify_gguf
from tests.helpers.command import quantkit as run_quantkit
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source") / "model", variant="llama3")


def written(checkpoint: Path, folder: Path, kind: str = "q8_0") -> GgufPlan:
    """A finished pass, not yet verified."""
    folder.mkdir(exist_ok=True)
    model = model_from_checkpoint(open_checkpoint(str(checkpoint)))
    plan = plan_gguf(model, GgufRequest(types=(file_type(kind),), folder=folder, threads=1))
    journal = Journal(folder / "journal.partial", "plan", [], force=False)
    run_pass(plan, journal, SILENT)
    journal.close()
    return plan


def failed(plan: GgufPlan) -> list[str]:
    (result,) = verify_gguf(plan)
    return [check.name for check in result.failed]


def file_of(plan: GgufPlan) -> Path:
    return partial_path(plan.request.folder / plan.outputs[0].files[0].name)


def slot_of(plan: GgufPlan, name: str) -> Slot:
    return next(slot for slot in plan.outputs[0].files[0].slots if slot.name == name)


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_sound_file_passes_every_check(checkpoint: Path, tmp_path: Path) -> None:
    (result,) = verify_gguf(written(checkpoint, tmp_path))
    assert [(check.name, check.status) for check in result.checks] == [
        (name, "passed") for name in ("structure", "finite", "error", "tokens", "logits")
    ]
    assert result.logit_correlation is not None
    assert result.logit_correlation > 0.99


def truncate(plan: GgufPlan) -> None:
    with file_of(plan).open("r+b") as file:
        file.truncate(plan.outputs[0].size - 64)


def retype_a_tensor(plan: GgufPlan) -> None:
    data = file_of(plan).read_bytes()
    at = data.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4 + 16
    patch(file_of(plan), at, (2).to_bytes(4, "little"))


def poison_a_scale(plan: GgufPlan) -> None:
    patch(file_of(plan), slot_of(plan, "blk.1.ffn_down.weight").offset, np.float16(np.nan).tobytes())


def swap_the_halves_of_a_tensor(plan: GgufPlan) -> None:
    slot = slot_of(plan, "blk.1.attn_v.weight")
    data = file_of(plan).read_bytes()[slot.offset : slot.offset + slot.nbytes]
    patch(file_of(plan), slot.offset, data[slot.nbytes // 2 :] + data[: slot.nbytes // 2])


def rename_a_token(plan: GgufPlan) -> None:
    data = file_of(plan).read_bytes()
    token = " the".replace(" ", "Ġ").encode()
    at = data.index((len(token)).to_bytes(8, "little") + token) + 8
    patch(file_of(plan), at, "Ġzqx".encode())


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (truncate, "structure"),
        (retype_a_tensor, "structure"),
        (poison_a_scale, "finite"),
        (swap_the_halves_of_a_tensor, "error"),
        (rename_a_token, "tokens"),
    ],
)
def test_each_damage_is_caught_by_its_check(
    checkpoint: Path, tmp_path: Path, damage: Callable[[GgufPlan], None], check: str
) -> None:
    plan = written(checkpoint, tmp_path)
    damage(plan)
    assert failed(plan) == [check]


def test_rows_left_in_the_checkpoints_order_are_caught_by_the_logits(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mapping itself may be wrong: rows then agree with what was read, and only running the file tells."""
    monkeypatch.setattr(
        quantkit.families.base.cuts, "interleave_rotary_rows", lambda _heads, rows: np.arange(rows, dtype=np.int64)
    )
    assert failed(written(checkpoint, tmp_path)) == ["logits"]


def test_a_failed_check_exits_3_and_leaves_no_file_under_its_final_name(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bounds = quantkit.verify.files.ERROR_BOUND
    monkeypatch.setattr(quantkit.verify.files, "ERROR_BOUND", dict.fromkeys(bounds, 1e-9))
    monkeypatch.setattr(sys, "argv", ["quantkit", "gguf", str(checkpoint), "-t", "q8_0", "-o", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 3
    assert "Q8_0 failed its check of error" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "model-GGUF").iterdir()) == [
        "model-Q8_0.gguf.failed",
        "quantkit.json",
    ]


def test_without_llama_cpp_the_logits_are_skipped_and_the_token_texts_are_compared(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("llama_cpp", "xllamacpp"):
        monkeypatch.setitem(sys.modules, package, None)
    (result,) = verify_gguf(written(checkpoint, tmp_path))
    by_name = {check.name: check for check in result.checks}
    assert {name for name, check in by_name.items() if check.status == "skipped"} == {"logits"}
    assert by_name["tokens"].status == "passed"
    assert all("quantkit[run]" in by_name[name].detail for name in ("tokens", "logits"))


@pytest.mark.parametrize("token", ["Ġthe", "<|eot_id|>"])
def test_without_llama_cpp_a_wrong_token_text_fails_the_check_of_tokens(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    for package in ("llama_cpp", "xllamacpp"):
        monkeypatch.setitem(sys.modules, package, None)
    plan = written(checkpoint, tmp_path)
    name = token.encode()
    at = file_of(plan).read_bytes().index(len(name).to_bytes(8, "little") + name) + 8
    patch(file_of(plan), at + len(name) - 1, b"!")
    assert failed(plan) == ["tokens"]


def test_shards_are_run_under_their_final_names(checkpoint: Path, tmp_path: Path) -> None:
    model = model_from_checkpoint(open_checkpoint(str(shutil.copytree(checkpoint, tmp_path / "model"))))
    request = GgufRequest(types=(file_type("q8_0"),), folder=tmp_path, threads=1, split_max_size=600_000)
    plan = plan_gguf(model, request)
    assert len(plan.outputs[0].files) > 1
    journal = Journal(tmp_path / "journal.partial", "plan", [], force=False)
    run_pass(plan, journal, SILENT)
    journal.close()
    (result,) = verify_gguf(plan)
    assert [check.status for check in result.checks] == ["passed"] * 5


def test_faint_weights_pass_where_half_precision_scales_lose_them(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start, stop = json.loads(data[8 : 8 + length])["model.layers.0.mlp.up_proj.weight"]["data_offsets"]
    rows = np.frombuffer(data, dtype=ml_dtypes.bfloat16, count=(stop - start) // 2, offset=8 + length + start)
    data[8 + length + start : 8 + length + stop] = (rows.astype(np.float32) * 1e-4).astype(rows.dtype).tobytes()
    file.write_bytes(data)
    for kind in ("f16", "q8_0", "q4_k_m"):
        assert failed(written(folder, tmp_path / kind, kind)) == []


@pytest.mark.parametrize("words", [("q8_0", "ffn=q2_k"), ("q8_0", ".*=q3_k"), ("tq2_0", "nothing=q8_0")])
def test_the_floor_of_the_logits_is_that_of_the_narrowest_type_asked_for(
    checkpoint: Path, tmp_path: Path, words: tuple[str, str]
) -> None:
    answer = run_quantkit("gguf", checkpoint, "-t", words[0], "--tensor-type", words[1], "-o", tmp_path)
    assert answer.code == 0, answer.stderr


def test_a_yardstick_that_fails_fails_no_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("rope")

    monkeypatch.setattr(quantkit.verify.source_logits, "reference_logits", broken)
    (result,) = verify_gguf(written(checkpoint, tmp_path))
    (check,) = [check for check in result.checks if check.name == "logits"]
    assert check.status == "skipped"
    assert "KeyError" in check.detail


def test_a_pretokenizer_that_the_installed_llama_cpp_does_not_know_yet_fails_no_check(
    checkpoint: Path, tmp_path: Path
) -> None:
    model = model_from_checkpoint(open_checkpoint(str(checkpoint)), pre="k2-horizon")
    plan = plan_gguf(model, GgufRequest(types=(file_type("q8_0"),), folder=tmp_path, threads=1))
    journal = Journal(tmp_path / "journal.partial", "plan", [], force=False)
    run_pass(plan, journal, SILENT)
    journal.close()
    (result,) = verify_gguf(plan, logits=True)
    checks = {check.name: check for check in result.checks}
    assert not result.failed
    # llama.cpp b11549 and later load the file, and then compare ids and logits
    details = checks["tokens"].detail, checks["logits"].detail
    assert all("b11549 and later know the pre-tokenizer k2-horizon" in detail for detail in details)
