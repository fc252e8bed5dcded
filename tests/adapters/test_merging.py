"""Merged weights against PEFT's figures (expected.json) and against the formulas of the papers in numpy."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from quantkit.adapters import AdapterRequest
from quantkit.checkpoint import Checkpoint
from quantkit.families import open_model, reference_logits
from quantkit.families.base.native import Native
from quantkit.outputs.opening import merge_adapters
from tests.adapters.cases import CASES, TOKENS, write_case
from tests.adapters.expected import FILE, sampled
from tests.helpers.adapters import PREFIX, AdapterCase, write_adapter, write_adapter_files
from tests.helpers.tiny import tiny_llama

EXPECTED = json.loads(FILE.read_text())


def merged(base: Path, *adapters: tuple[Path, float]) -> Checkpoint:
    opened = open_model(str(base))
    merge_adapters(opened, [AdapterRequest(str(path), scale) for path, scale in adapters])
    return opened


def whole(opened: Checkpoint, name: str) -> np.ndarray:
    tensor = opened.tensors[name]
    return opened.read_rows(name, 0, tensor.n_rows).reshape(tensor.shape)


@pytest.mark.parametrize("name", CASES)
def test_merged_weights_and_logits_are_pefts(name: str, tmp_path: Path) -> None:
    case, known = CASES[name], EXPECTED[name]
    base, adapters = write_case(case, tmp_path)
    with merged(base, *adapters) as opened:
        native = Native(opened)
        logits = reference_logits(native.whole, native.config, TOKENS, rows=native.rows, names=native.tensors.keys())
        ours = np.array([sampled(row) for row in logits])
        assert np.abs(ours - known["logits"]).max() < 1e-4 * logits.std()
        if case.merge_is_peft:
            for weight in opened.tensors:
                stated = known["weights"].get(weight) or known["weights"][f"transformer.{weight}"]
                np.testing.assert_allclose(sampled(whole(opened, weight)), stated, rtol=1e-5, atol=1e-6)


def test_lora_and_dora_follow_the_papers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = tiny_llama(tmp_path / "base", dtype="f32", hidden=64, intermediate=96, layers=1)
    name = "model.layers.0.self_attn.q_proj"
    a, b = rng.standard_normal((3, 64)).astype(np.float32), rng.standard_normal((64, 3)).astype(np.float32)
    m = rng.uniform(0.5, 2, 64).astype(np.float32)
    matrices = {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 12}
    lora = write_adapter_files(tmp_path / "lora", settings, matrices)
    rank_stable = write_adapter_files(tmp_path / "rslora", {**settings, "use_rslora": True}, matrices)
    matrices[f"{PREFIX}{name}.lora_magnitude_vector"] = m
    dora = write_adapter_files(tmp_path / "dora", {**settings, "use_dora": True}, matrices)
    with open_model(str(base)) as opened:
        w = whole(opened, f"{name}.weight").astype(np.float64)
    product = b.astype(np.float64) @ a.astype(np.float64)
    v = w + 4 * product
    for folder, scale, expected in (
        (lora, 1.0, v),
        (lora, -0.5, w - 2 * product),
        (rank_stable, 1.0, w + 12 / 3**0.5 * product),
        (dora, 1.0, m[:, None] * v / np.linalg.norm(v, axis=1, keepdims=True)),
    ):
        with merged(base, (folder, scale)) as opened:
            np.testing.assert_allclose(whole(opened, f"{name}.weight"), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_the_merged_weight_is_rounded_once_to_the_stored_type(dtype: str, tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", dtype=dtype, hidden=64, intermediate=96, layers=1)
    adapter = write_adapter(tmp_path / "adapter", base, AdapterCase(("up_proj",)))
    name = "model.layers.0.mlp.up_proj"
    with open_model(str(base)) as opened:
        w = whole(opened, f"{name}.weight").astype(np.float64)
    with merged(base, (adapter, 1.0)) as opened:
        ours = whole(opened, f"{name}.weight")
        ((_, parts),) = opened.adapters[0].modules.items()  # type: ignore[attr-defined]
        read = opened.adapters[0].read  # type: ignore[attr-defined]
        a, b = read(parts["A"]).astype(np.float64), read(parts["B"]).astype(np.float64)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bf16" else np.float16)
    assert ours.dtype == kind
    expected = (w + 6 / 4 * b @ a).astype(np.float32).astype(kind)
    assert (ours == expected).mean() > 0.999  # a tie may fall to the other side of the float32 sum


def test_rows_do_not_depend_on_how_many_are_read(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", dtype="f32", hidden=256, intermediate=4096, layers=1)
    adapter = write_adapter(
        tmp_path / "adapter", base, AdapterCase(("up_proj", "down_proj"), settings={"use_dora": True})
    )
    with merged(base, (adapter, 1.0)) as opened:
        for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"):
            rows = whole(opened, name)
            pieces = [opened.read_rows(name, start, min(start + 7, len(rows))) for start in range(0, len(rows), 7)]
            assert np.array_equal(np.concatenate(pieces), rows)


def test_tensors_that_no_adapter_changes_are_the_bases_bytes(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", hidden=64, intermediate=96, layers=1)
    adapter = write_adapter(tmp_path / "adapter", base, AdapterCase(("q_proj",)))
    with open_model(str(base)) as plain, merged(base, (adapter, 1.0)) as opened:
        changed = {name for name in plain.tensors if whole(plain, name).tobytes() != whole(opened, name).tobytes()}
    assert changed == {"model.layers.0.self_attn.q_proj.weight"}


def test_an_old_adapter_with_its_name_inside_the_names_is_the_same(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", dtype="f32", hidden=64, intermediate=96, layers=1)
    name, rng = "model.layers.0.self_attn.v_proj", np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 64), (64, 2)))
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    weights = []
    for folder, inside in (("new", ""), ("old", ".default")):
        tensors = {f"{PREFIX}{name}.lora_A{inside}.weight": a, f"{PREFIX}{name}.lora_B{inside}.weight": b}
        with merged(base, (write_adapter_files(tmp_path / folder, settings, tensors), 1.0)) as opened:
            weights.append(whole(opened, f"{name}.weight"))
    assert np.array_equal(*weights)
