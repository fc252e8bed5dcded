"""`quantkit lora`: the bytes of llama.cpp's own script, and what llama.cpp computes with the file.

adapter_gguf.json has the sha256 of what convert_lora_to_gguf.py of b11549 writes; tests/full/test_lora.py makes them
anew.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from quantkit.llamacpp.evaluation import logits
from tests.adapters.cases import GPT2, TOKENS, write_base
from tests.adapters.gguf_cases import FAMILIES, TYPES, write_family_case
from tests.helpers.adapters import AdapterCase, adapter_settings, write_adapter
from tests.helpers.command import quantkit

THEIRS = json.loads(Path(__file__).with_name("adapter_gguf.json").read_text())


def adapter_gguf(adapter: Path, base: Path, out: Path, kind: str = "f32") -> Path:
    answer = quantkit("lora", adapter, "--base", base, "-t", kind, "-o", out, "--format", "json")
    assert answer.code == 0, answer.stderr
    return Path(json.loads(answer.stdout)["outputs"][0]["file"])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_bytes_are_those_of_llama_cpps_script(name: str, tmp_path: Path) -> None:
    base, adapter = write_family_case(name, tmp_path)
    ours = {
        kind: hashlib.sha256(adapter_gguf(adapter, base, tmp_path, kind).read_bytes()).hexdigest() for kind in TYPES
    }
    assert ours == THEIRS[name]


@pytest.mark.parametrize(
    ("base", "case"),
    [
        ("plain", AdapterCase()),
        ("plain", AdapterCase(settings={"use_rslora": True})),
        ("plain", AdapterCase(("embed_tokens", "lm_head", "k_proj"))),
        (
            "plain",
            AdapterCase(
                ranks={"up_proj": 6}, settings={"rank_pattern": {"up_proj": 6}, "alpha_pattern": {"q_proj": 3}}
            ),
        ),
        ("gpt2", AdapterCase(GPT2, conv1d=True)),
    ],
    ids=["lora", "rslora", "embedding and head", "patterns", "conv1d"],
)
def test_llama_cpp_computes_the_same_with_the_adapter_as_with_merged_weights(
    base: str, case: AdapterCase, tmp_path: Path
) -> None:
    checkpoint = write_base(base, tmp_path / base)
    adapter = write_adapter(tmp_path / "adapter", checkpoint, case)
    for words in ((), ("--adapter", adapter)):
        assert quantkit("gguf", checkpoint, *words, "-t", "f32", "--no-logits", "-o", tmp_path / "out").code == 0
    plain, merged = (next((tmp_path / "out" / f"{name}-GGUF").glob("*.gguf")) for name in (base, f"{base}-adapter"))
    with_adapter = logits(plain, TOKENS, adapter=adapter_gguf(adapter, checkpoint, tmp_path))
    expected = logits(merged, TOKENS)
    assert np.abs(with_adapter - expected).max() < 5e-4 * expected.std()
    assert np.abs(with_adapter - logits(plain, TOKENS)).max() > 0.05 * expected.std()


@pytest.mark.parametrize(
    ("base", "case", "words"),
    [
        ("plain", AdapterCase(settings={"use_dora": True}), "has DoRA's magnitudes"),
        ("plain", AdapterCase(("q_proj",), saved=("lm_head.weight",)), "has a layer that was trained whole"),
        ("plain", AdapterCase(("q_proj",), saved=("model.norm.weight",)), "has a layer that was trained whole"),
        ("plain", AdapterCase(("q_proj",), tokens=(3,)), "has single tokens that were trained"),
        ("tied", AdapterCase(("embed_tokens",)), "the base ties the embedding and the output head"),
        ("gpt2", AdapterCase(("c_attn",), conv1d=True, bias=True), "has a bias of its own"),
    ],
)
def test_what_an_adapter_gguf_cannot_hold_is_refused(base: str, case: AdapterCase, words: str, tmp_path: Path) -> None:
    checkpoint = write_base(base, tmp_path / base)
    adapter = write_adapter(tmp_path / "adapter", checkpoint, case)
    answer = quantkit("lora", adapter, "--base", checkpoint, "-o", tmp_path / "out")
    assert answer.code == 1
    assert words in answer.sentence and "merge it with --adapter instead" in answer.sentence
    assert not (tmp_path / "out").exists()


def test_an_alora_keeps_its_invocation_tokens(tmp_path: Path) -> None:
    from quantkit.gguf.reader import read_header

    checkpoint = write_base("plain", tmp_path / "plain")
    adapter = write_adapter(tmp_path / "adapter", checkpoint, AdapterCase(("q_proj",)))
    adapter_settings(adapter, alora_invocation_tokens=[5, 9])
    header = read_header(adapter_gguf(adapter, checkpoint, tmp_path))
    assert list(header.value("adapter.alora.invocation_tokens")) == [5, 9]


def test_the_command_checks_its_words_and_keeps_what_is_there(tmp_path: Path) -> None:
    checkpoint = write_base("plain", tmp_path / "plain")
    adapter = write_adapter(tmp_path / "adapter", checkpoint, AdapterCase(("q_proj",)))
    words = ("lora", adapter, "--base", checkpoint, "-o", tmp_path / "out")
    assert "has no type 'q4_0'; pass one of f32, f16, bf16, q8_0" in quantkit(*words, "-t", "q4_0").sentence
    assert quantkit(*words, "--dry-run").code == 0
    assert not (tmp_path / "out").exists()
    assert quantkit(*words).code == 0
    assert "already exists; add --force" in quantkit(*words).sentence
    assert quantkit(*words, "--force").code == 0
    (file,) = (tmp_path / "out" / "adapter-GGUF").glob("*.gguf")
    shown = quantkit("inspect", file)
    assert shown.code == 0 and "LoRA adapter (GGUF)" in shown.stdout, shown.stderr
    assert "merged" not in shown.stdout and "adapter (LoRA of rank 4)" in " ".join(shown.stdout.split())


def test_values_out_of_the_range_of_the_type_are_refused(tmp_path: Path) -> None:
    checkpoint = write_base("plain", tmp_path / "plain")
    adapter = write_adapter(tmp_path / "adapter", checkpoint, AdapterCase(("q_proj",)))
    path = adapter / "adapter_model.safetensors"
    for value, words in ((1e6, "out of the range of F16; choose -t f32"), (np.nan, "contains NaN or infinity")):
        path.write_bytes(path.read_bytes()[:-4] + np.float32(value).tobytes())
        answer = quantkit("lora", adapter, "--base", checkpoint, "-t", "f16", "-o", tmp_path / "out")
        assert answer.code == 1 and words in answer.sentence
        assert not list((tmp_path / "out").rglob("*.gguf*"))
