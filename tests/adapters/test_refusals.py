"""Adapters that do not fit or are not LoRA: one sentence each, with the next step, and nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.adapters import PREFIX, AdapterCase, adapter_settings, write_adapter, write_adapter_files
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama

Q = f"{PREFIX}model.layers.0.self_attn.q_proj"
SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "ORG/BASE"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "base", hidden=64, intermediate=96, layers=1)


def refusal(base: Path, *adapters: Path, out: Path, words: tuple[str, ...] = (), code: int = 1) -> str:
    named = [word for adapter in adapters for word in ("--adapter", str(adapter))]
    answer = quantkit("gguf", base, *named, *words, "-t", "q8_0", "-o", out)
    assert answer.code == code, answer.stderr
    assert not out.exists() or not list(out.iterdir())
    return answer.sentence


def matrices(out: int = 64, inputs: int = 64, rank: int = 2, module: str = Q) -> dict[str, np.ndarray]:
    return {
        f"{module}.lora_A.weight": np.ones((rank, inputs), np.float32),
        f"{module}.lora_B.weight": np.ones((out, rank), np.float32),
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "LOHA"}, "an adapter of type 'LOHA'; quantkit reads LORA"),
        ({"peft_type": "IA3"}, "an adapter of type 'IA3'"),
        ({"peft_type": None}, "has no peft_type"),
        ({"r": None}, "has no r; save the adapter"),
        ({"lora_alpha": None}, "has no lora_alpha"),
        ({"lora_alpha": "8"}, "lora_alpha is '8', not a number"),
        ({"r": 0}, "r is 0, not a whole number of at least 1"),
        ({"r": 3}, "matrices of rank 2 and 2, but adapter_config.json makes it 3"),
        ({"rank_pattern": {"q_proj": 4}}, "adapter_config.json makes it 4"),
        ({"alpha_pattern": {"(": 4}}, "not a regular expression"),
        ({"use_dora": True}, "lacks the magnitude vector"),
        ({"init_lora_weights": "pissa_niter_4"}, "has init_lora_weights 'pissa_niter_4', so it fits a changed base"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "sets target_parameters, which quantkit does not read"),
        ({"layer_replication": [[0, 1]]}, "sets layer_replication"),
        ({"alora_invocation_tokens": [3]}, "is an aLoRA"),
    ],
)
def test_settings_that_are_missing_wrong_or_of_another_kind(
    settings: dict[str, object], words: str, base: Path, tmp_path: Path
) -> None:
    adapter = write_adapter_files(tmp_path / "adapter", SETTINGS, matrices())
    assert words in refusal(base, adapter_settings(adapter, **settings), out=tmp_path / "out")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (matrices(module=f"{PREFIX}model.layers.0.self_attn.qq_proj"), "qq_proj.weight', which"),
        (matrices(module=f"{PREFIX}model.layers.7.self_attn.q_proj"), "layers.7.self_attn.q_proj.weight', which"),
        (matrices(inputs=128), "is for a tensor of shape [64, 128], but 'model.layers.0.self_attn.q_proj.weight'"),
        (dict(list(matrices().items())[:1]), "lora_A.weight' without its other matrix"),
        ({f"{Q}.hada_w1_a": np.ones((2, 2), np.float32)}, "is not part of a LoRA that quantkit knows"),
        ({**matrices(), f"{Q}.lora_magnitude_vector": np.ones(64, np.float32)}, "has the magnitude vector"),
        ({f"{PREFIX}lm_head.weight": np.ones((7, 64), np.float32)}, "is for a tensor of shape [7, 64]"),
        ({}, "holds no tensors"),
    ],
)
def test_tensors_that_do_not_fit(tensors: dict[str, np.ndarray], words: str, base: Path, tmp_path: Path) -> None:
    sentence = refusal(base, write_adapter_files(tmp_path / "adapter", SETTINGS, tensors), out=tmp_path / "out")
    assert words in sentence
    assert "layers" not in words or "'ORG/BASE'" in sentence


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_remove("adapter_config.json"), "has no adapter_config.json; pass the folder"),
        (_remove("adapter_model.safetensors"), "has no adapter_model.safetensors; pass the folder"),
        (_pickle, "adapter_model.bin, a pickle that can run code"),
        (_cut, "is truncated"),
    ],
)
def test_files_that_are_missing_pickled_or_cut(
    damage: Callable[[Path], None], words: str, base: Path, tmp_path: Path
) -> None:
    adapter = write_adapter_files(tmp_path / "adapter", SETTINGS, matrices())
    damage(adapter)
    assert words in refusal(base, adapter, out=tmp_path / "out")


def test_scales_are_one_for_each_adapter_and_finite(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter_files(tmp_path / "adapter", SETTINGS, matrices())
    twice = refusal(base, adapter, adapter, out=tmp_path / "out", words=("--adapter-scale", "1"), code=2)
    assert "--adapter-scale is given 1 times, but --adapter 2 times" in twice
    assert "not a finite number" in refusal(
        base, adapter, out=tmp_path / "out", words=("--adapter-scale", "nan"), code=2
    )


def test_two_adapters_that_replace_one_tensor(base: Path, tmp_path: Path) -> None:
    case = AdapterCase(("q_proj",), saved=("model.norm.weight",))
    one, other = (write_adapter(tmp_path / name, base, case) for name in ("one", "other"))
    assert "which another adapter changes too" in refusal(base, one, other, out=tmp_path / "out")


def test_a_gguf_takes_no_adapter(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter_files(tmp_path / "adapter", SETTINGS, matrices())
    answer = quantkit("gguf", base, "-t", "f16", "--no-logits", "-o", tmp_path / "gguf")
    assert answer.code == 0, answer.stderr
    (file,) = (tmp_path / "gguf").rglob("*.gguf")
    sentence = refusal(file, adapter, out=tmp_path / "out", code=2)
    assert "--adapter needs a checkpoint" in sentence and "quantkit lora" in sentence


def test_the_adapter_as_source_names_both_ways(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter_files(tmp_path / "adapter", SETTINGS, matrices())
    answer = quantkit("gguf", adapter, "-o", tmp_path / "out")
    assert answer.code == 1
    assert "to --adapter to merge it; quantkit lora writes an adapter GGUF" in answer.sentence
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] in answer.sentence
