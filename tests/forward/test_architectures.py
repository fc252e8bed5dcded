"""The reference forward against transformers' own logits, for the tiny models of every family, and the check that
rests on it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.cli import main
from quantkit.families import find_family, forward_architectures, reference_logits
from quantkit.gguf.file_types import file_type
from quantkit.outputs.gguf_files import GgufRequest, plan_gguf
from quantkit.outputs.model import model_from_checkpoint
from quantkit.verify.running import check_logits
from quantkit.verify.source_logits import SourceLogits, source_logits
from tests.families.expected import expected, write_checkpoint
from tests.families.models import TOKENS, all_cases, forward_cases, native_weights

# transformers has no class for some models: their logits are those of a patched one, which no config describes. In a
# multimodal checkpoint the text model's names and config are nested: the published checkpoint's logits cover it.
NATIVE = sorted(
    name for name, (_, case) in forward_cases().items() if not (case.patch or case.multimodal or case.other_names)
)
# One case a family goes through the command in the default suite, all of them in the full one.
FIRST = {find_family(expected(name).config).name: name for name in sorted(forward_cases(), reverse=True)}.values()
# What is in MXFP4 already is not quantized again.
TYPES = {"deepseek-v4": "mxfp4", "gpt-oss-mxfp4": "mxfp4"}


def native(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and config of a case's model as transformers itself has them: no family's data is in between."""
    case, known = all_cases()[name][1], expected(name).native
    tensors = native_weights(case, known["layout"])
    if case.publish:
        # a layout may tie the native model down too
        case.publish(known["config"], tensors)
    return tensors, known["config"]


def assert_transformers_own(actual: np.ndarray, name: str) -> None:
    """Equal up to how they are stored, in half precision: half a unit of the last place, and little more."""
    known = expected(name).logits
    allowed = 0.5 * np.spacing(np.abs(known).astype(np.float16)).astype(np.float32) + 1e-4 * known.std()
    assert (np.abs(actual - known) <= allowed).all(), f"{np.abs(actual - known).max() / known.std():.2%} of their std"


def test_every_architecture_of_the_reference_is_compared() -> None:
    compared = {expected(name).native["config"]["architectures"][0] for name in NATIVE}
    spellings = {
        "KimiLinearModel",
        "LLaMAForCausalLM",
        "StableLMEpochForCausalLM",
        "LFM2ForCausalLM",
        "Dots3NoteForConditionalGeneration",
        "UnlimitedOCRForCausalLM",
        "Ernie4_5_ForCausalLM",
        "MptForCausalLM",
        "MambaLMHeadModel",
        "OLMoForCausalLM",
        "PhimoeForCausalLM",
    }
    # transformers has no class of these, or saves other names: their published checkpoints are compared instead
    remote = {
        "DeepseekV4ForCausalLM",
        *("BailingMoeForCausalLM", "BailingMoeV2ForCausalLM", "KORMoForCausalLM", "Phi4ForCausalLMV"),
        *("CodeShellForCausalLM", "DeepseekForCausalLM", "MaincoderForCausalLM", "PaddleOCRVLForConditionalGeneration"),
        *("DeciLMForCausalLM", "JAISLMHeadModel", "OpenELMForCausalLM", "PLaMo3ForCausalLM", "Plamo3ForCausalLM"),
        *(
            "JinaBertModel",
            "Lfm2BidirectionalModel",
            "Lfm2Model",
            "BailingMoeV3ForCausalLM",
            "KimiK3ForConditionalGeneration",
            "LlamaBidirectionalModel",
            "MiniMaxM3SparseForCausalLM",
            "MiniMaxM3SparseForConditionalGeneration",
            "MuseGlimmerForConditionalGeneration",
            "DeepseekOCRForCausalLM",
            "HYV4ForCausalLM",
            "NanbeigeForCausalLM",
            "Rwkv7ForCausalLM",
            "Step3p5ForCausalLM",
            "Step3p7ForConditionalGeneration",
            "YoutuVLForConditionalGeneration",
            "modeling_sarvam_moe.SarvamMoEForCausalLM",
        ),
    }
    assert set(forward_architectures()) - spellings - remote == compared


@pytest.mark.parametrize("name", NATIVE)
def test_logits_of_the_native_model_are_those_of_transformers(name: str) -> None:
    tensors, config = native(name)
    assert_transformers_own(reference_logits(tensors.__getitem__, config, TOKENS), name)


@pytest.mark.parametrize("name", sorted(forward_cases()))
def test_logits_of_the_published_checkpoint_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    with open_checkpoint(str(write_checkpoint(name, tmp_path / name))) as checkpoint:
        assert_transformers_own(source_logits(checkpoint, TOKENS), name)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qwen2-yarn", {"rope_scaling": None}),
        ("qwen3moe", {"norm_topk_prob": False}),
        ("granite", {"residual_multiplier": 1.0}),
        ("granite", {"attention_multiplier": 0.25}),
        ("olmo-clipped", {"clip_qkv": None}),
        ("olmo3", {"sliding_window": 7}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"sliding_window": None}),
        ("gemma3", {"rope_local_base_freq": 500.0}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("deepseek-v3", {"n_group": 1}),
        ("deepseek-v3", {"routed_scaling_factor": 1.0}),
        ("deepseek-v3-yarn", {"rope_scaling": None}),
        ("gpt-oss", {"swiglu_limit": 0.5}),
        ("qwen35-tied-equal-heads", {"rope_parameters": {"rope_theta": 1e7, "partial_rotary_factor": 1.0}}),
    ],
)
def test_the_tiny_models_notice_a_setting_that_is_not_followed(name: str, change: dict[str, Any]) -> None:
    tensors, config = native(name)
    assert config.get(next(iter(change))) != next(iter(change.values()))
    result = reference_logits(tensors.__getitem__, {**config, **change}, TOKENS)
    assert np.abs(result - expected(name).logits).max() > 0.02 * expected(name).logits.std()


@pytest.mark.parametrize(
    "name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.full) for name in sorted(forward_cases())]
)
def test_a_converted_checkpoint_passes_the_check_of_its_logits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_checkpoint(name, tmp_path / name)
    words = ["gguf", str(source), "-t", TYPES.get(name, "q8_0"), "-o", str(tmp_path / "out"), "--format", "json"]
    monkeypatch.setattr(sys, "argv", ["quantkit", *words])
    with pytest.raises(SystemExit) as left:
        main()
    answer = capsys.readouterr()
    assert left.value.code == 0, answer.err
    compared = "embeddings" if all_cases()[name][1].encoder else "logits"
    (check,) = [entry for entry in json.loads(answer.out)["outputs"][0]["checks"] if entry["name"] == compared]
    assert check["status"] == ("skipped" if all_cases()[name][1].graph_differs else "passed"), check


def test_a_source_that_the_reference_does_not_know_skips_the_check_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit.families.base.registry.forward_architectures", dict)
    with open_checkpoint(str(write_checkpoint("llama", tmp_path / "llama"))) as checkpoint:
        model = model_from_checkpoint(checkpoint)
        plan = plan_gguf(model, GgufRequest(types=(file_type("f16"),), folder=tmp_path / "out"))
        check, correlation = check_logits(plan, plan.outputs[0], SourceLogits(checkpoint), None)
    assert (check.status, correlation) == ("skipped", None)
    assert "does not support architecture LlamaForCausalLM" in check.detail
