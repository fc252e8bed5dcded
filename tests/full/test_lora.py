"""Adapters against the tools that they come from: PEFT trains and merges them, llama.cpp's script writes their GGUF."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.errors import UnknownArchitectureError
from quantkit.families import reference_logits
from quantkit.families.base.native import Native
from quantkit.llamacpp.evaluation import logits as llama_logits
from quantkit.outputs import opening
from quantkit.tokenizer import hf_token_ids
from tests.adapters import expected
from tests.adapters.cases import TOKENS, write_base
from tests.adapters.gguf_cases import FAMILIES, TYPES, write_family_case
from tests.adapters.test_merging import merged, whole
from tests.helpers.adapters import LINEARS
from tests.helpers.command import quantkit
from tests.helpers.lora_converter import convert_adapters
from tests.helpers.peer import newest_converter
from tests.helpers.peft import run_peft
from tests.helpers.real import smollm2_or_skip, wikitext2_or_skip

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

_ENDS = ["embed_tokens", "lm_head", "q_proj"]
_CONV1D = ["c_attn", "c_proj", "c_fc"]
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("plain", {"target_modules": list(LINEARS)}),
    "rslora": ("plain", {"target_modules": list(LINEARS), "use_rslora": True}),
    "dora": ("plain", {"target_modules": list(LINEARS), "use_dora": True}),
    "patterns": (
        "plain",
        {"target_modules": list(LINEARS), "rank_pattern": {"up_proj": 6, "layers.0.mlp.gate_proj": 2}},
    ),
    "saved": ("plain", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "ends": ("plain", {"target_modules": _ENDS}),
    "ends, dora": ("plain", {"target_modules": _ENDS, "use_dora": True}),
    "tokens": ("plain", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 7]}),
    "tied, embedding": ("tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied, head": ("tied", {"target_modules": ["lm_head", "q_proj"]}),
    "tied, saved": ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "tied, both saved": ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied as one": ("tied", {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
    "tied as one, saved": (
        "tied",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "tied tokens": ("tied", {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 7]}}),
    "conv1d": ("gpt2", {"target_modules": _CONV1D}),
    "conv1d, dora": ("gpt2", {"target_modules": _CONV1D, "use_dora": True}),
    "lora bias": ("gpt2", {"target_modules": ["c_attn"], "lora_bias": True}),
    "all biases": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
    "its biases": ("gpt2", {"target_modules": ["c_attn"], "bias": "lora_only"}),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, dict[str, np.ndarray]]]:
    """By training: the base, the adapter that PEFT made and saved, PEFT's logits and merged weights."""
    folder = tmp_path_factory.mktemp("trained")
    places, jobs = {}, []
    for number, (name, (base, settings)) in enumerate(TRAININGS.items()):
        places[name] = write_base(base, folder / base), folder / f"adapter{number}"
        train = {"r": 4, "lora_alpha": 8, **settings}
        adapters = [[str(places[name][1]), 1.0]]
        jobs.append({"base": str(places[name][0]), "adapters": adapters, "train": train, "tokens": TOKENS})
    answers = run_peft(jobs, folder)
    return {name: (*place, answer) for (name, place), answer in zip(places.items(), answers, strict=True)}


@pytest.mark.parametrize("name", TRAININGS)
def test_an_adapter_that_peft_trained_gives_pefts_logits(
    name: str, trained: dict[str, tuple[Path, Path, dict[str, np.ndarray]]], tmp_path: Path
) -> None:
    base, adapter, theirs = trained[name]
    with merged(base, (adapter, 1.0)) as opened:
        native = Native(opened)
        ours = reference_logits(native.whole, native.config, TOKENS, rows=native.rows, names=native.tensors.keys())
        assert np.abs(ours - theirs["logits"]).max() < 1e-4 * theirs["logits"].std()
        # PEFT merges an adapter of one of two tied matrices into both, so its merged model is not the trained one
        if "tied" not in TRAININGS[name][0]:
            for weight in opened.tensors:
                stated = theirs.get(weight, theirs.get(f"transformer.{weight}"))
                np.testing.assert_allclose(whole(opened, weight), stated, rtol=1e-5, atol=2e-6)
    answer = quantkit("gguf", base, "--adapter", adapter, "-t", "f32", "-o", tmp_path)
    assert answer.code == 0, answer.stderr
    (file,) = tmp_path.rglob("*.gguf")
    run = llama_logits(file, TOKENS)
    assert np.abs(run - theirs["logits"]).max() < 0.01 * theirs["logits"].std()


@pytest.mark.parametrize("name", TRAININGS)
def test_a_model_without_a_family_is_merged_too(
    name: str,
    trained: dict[str, tuple[Path, Path, dict[str, np.ndarray]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """llama.cpp's converter reads the base; the merged rows come from quantkit."""

    def unknown(*_: object, **__: object) -> None:
        raise UnknownArchitectureError("the architecture of this test is not supported yet")

    monkeypatch.setattr(opening, "open_model", unknown)
    base, adapter, theirs = trained[name]
    pre = {"plain": "llama-bpe", "tied": "smollm", "gpt2": "gpt-2"}[TRAININGS[name][0]]
    converter = ("--converter", newest_converter().source, "--pre", pre)
    answer = quantkit("gguf", base, "--adapter", adapter, "-t", "f32", "-o", tmp_path, *converter)
    assert answer.code == 0, answer.stderr
    assert "has no family in quantkit" in answer.stderr
    (file,) = tmp_path.rglob("*.gguf")
    run = llama_logits(file, TOKENS)
    assert np.abs(run - theirs["logits"]).max() < 0.01 * theirs["logits"].std()
    record = json.loads((file.parent / "quantkit.json").read_text())
    assert next(iter(record["outputs"].values()))["origin"]["adapters"][0]["source"] == adapter.name


def test_a_lora_of_a_real_model_trained_on_real_text(tmp_path: Path) -> None:
    """SmolLM2 135M and WikiText-2: the adapter merged by quantkit, and loaded by llama.cpp, against PEFT."""
    base, text = smollm2_or_skip(), wikitext2_or_skip()
    (ids,) = hf_token_ids(base, [text[:3000]])
    adapter = tmp_path / "wiki"
    train = {"r": 8, "lora_alpha": 16, "target_modules": list(LINEARS)}
    job = {
        "base": str(base),
        "adapters": [[str(adapter), 1.0]],
        "train": train,
        "text": ids[:192],
        "tokens": ids[192:256],
    }
    (theirs,) = run_peft([{**job, "steps": 6, "learning_rate": 1e-3, "weights": False}], tmp_path)
    assert theirs["losses"][-1] < theirs["losses"][0] - 0.1
    out = tmp_path / "out"
    for words in (
        ("gguf", base, "-t", "f32", "--no-logits"),
        ("gguf", base, "--adapter", adapter, "-t", "f32", "--no-logits"),
        ("lora", adapter, "--base", base),
    ):
        answer = quantkit(*words, "-o", out)
        assert answer.code == 0, answer.stderr
    plain, merged_file, lora = (
        next(out.rglob(name)) for name in (f"{base.name}-F32.gguf", "*-wiki-F32.gguf", "*LoRA.gguf")
    )
    before, spread = llama_logits(plain, job["tokens"]), theirs["logits"].std()
    with_adapter = llama_logits(plain, job["tokens"], adapter=lora)
    assert np.abs(before - theirs["logits"]).max() > 0.1 * spread
    assert np.abs(with_adapter - theirs["logits"]).max() < 0.005 * spread
    # a merged weight is rounded to the base's bfloat16, PEFT's product is not
    assert np.abs(llama_logits(merged_file, job["tokens"]) - theirs["logits"]).max() < 0.1 * spread


def test_the_committed_figures_are_pefts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expected, "FILE", tmp_path / "expected.json")
    before = Path(expected.__file__).with_name("expected.json")
    expected.main()
    made, known = json.loads((tmp_path / "expected.json").read_text()), json.loads(before.read_text())
    assert made.keys() == known.keys()
    for name, figures in made.items():
        np.testing.assert_allclose(figures["logits"], known[name]["logits"], atol=1e-3)


def test_the_committed_hashes_are_llama_cpps(tmp_path: Path) -> None:
    committed = json.loads((Path(expected.__file__).with_name("adapter_gguf.json")).read_text())
    assert script_hashes(tmp_path) == committed


def script_hashes(folder: Path) -> dict[str, dict[str, str]]:
    """The sha256 of what llama.cpp's script writes for every case and type."""
    jobs = []
    for name in FAMILIES:
        base, adapter = write_family_case(name, folder / name)
        jobs += [(adapter, base, folder / name / f"{kind}.gguf", kind) for kind in TYPES]
    assert convert_adapters(jobs) == [None] * len(jobs)
    return {
        name: {kind: hashlib.sha256((folder / name / f"{kind}.gguf").read_bytes()).hexdigest() for kind in TYPES}
        for name in FAMILIES
    }
