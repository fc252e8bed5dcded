"""Layers that predict a later token: kept, written alone, or left out, as llama.cpp's converter does; refusals."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, QuantkitError, UsageError
from quantkit.families import check_config, find_family, map_tensors
from quantkit.outputs.model import model_from_checkpoint
from tests.families.expected import expected, read_gguf, write_checkpoint
from tests.helpers.command import quantkit
from tests.helpers.peer import REPOSITORY, newest_converter

NAMES = ("qwen35", "qwen35moe", "qwen3next", "step3.5", "glm4moe")
ENDS = {"token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"}


def converted(name: str, folder: Path, mtp: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Keys and tensors of the case's GGUF in f32, by the command."""
    source = folder / name
    if not source.exists():
        write_checkpoint(name, source)
    answer = quantkit("gguf", source, "-t", "f32", "--mtp", mtp, "-o", folder / mtp)
    assert answer.code == 0, answer.sentence
    file = f"mtp-{name}" if mtp == "only" else name
    return read_gguf(folder / mtp / f"{file}-GGUF" / f"{file}-F32.gguf")


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.full) for name in NAMES[1:])])
def test_dropped_and_written_alone_are_the_two_parts_of_the_kept_file(name: str, tmp_path: Path) -> None:
    files = {mtp: converted(name, tmp_path, mtp) for mtp in ("keep", "drop", "only")}
    tensors = {mtp: tensors for mtp, (_, tensors) in files.items()}
    assert tensors["keep"] == tensors["drop"] | tensors["only"]
    assert tensors["drop"].keys() & tensors["only"].keys() == ENDS & tensors["keep"].keys()
    arch, layers = files["keep"][0]["general.architecture"], {}
    for mtp, (keys, _) in files.items():
        layers[mtp] = keys[f"{arch}.block_count"], keys.get(f"{arch}.nextn_predict_layers", 0)
    (whole, drafts), (own, _) = layers["keep"], layers["drop"]
    assert layers == {"keep": (own + drafts, drafts), "only": (whole, drafts), "drop": (own, 0)}
    assert drafts == (2 if name == "step3.5" else 1)
    assert {int(tensor.split(".")[1]) for tensor in tensors["only"].keys() - ENDS} == set(range(own, whole))


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES[:4])
def test_both_parts_are_those_of_llama_cpps_converter(name: str, tmp_path: Path) -> None:
    source, peer = write_checkpoint(name, tmp_path / name), newest_converter()
    environment = peer.environment()
    environment["PYTHONPATH"] = f"{environment['PYTHONPATH']}:{peer.source}:{REPOSITORY}"
    for mtp, setting in (("drop", "no_mtp"), ("only", "mtp_only")):
        theirs = tmp_path / f"{mtp}.gguf"
        code = (
            "from pathlib import Path; import json, sys; from conversion.base import ModelBase;"
            f"ModelBase.{setting} = True;"
            "from tests.families.with_transformers import convert; from tests.families.models import all_cases;"
            "folder = Path(sys.argv[1]);"
            "read = lambda: json.loads((folder / 'config.json').read_text());"
            "raw = {'hparams': read()} if all_cases()[folder.name][1].raw_config else {};"
            "convert(folder, Path(sys.argv[2]), None, **raw)"
        )
        command = [str(peer.python), "-c", code, str(source), str(theirs)]
        done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert converted(name, tmp_path, mtp) == read_gguf(theirs)


def test_a_gguf_keeps_its_layers_and_a_model_without_draft_layers_has_none_to_write(tmp_path: Path) -> None:
    source = write_checkpoint("qwen35-bare", tmp_path / "bare")
    with open_checkpoint(str(source)) as checkpoint, pytest.raises(UsageError, match="--mtp only: bare has no layer"):
        model_from_checkpoint(checkpoint, mtp="only")
    answer = quantkit("gguf", source, "-t", "f16", "-o", tmp_path / "out", "--no-logits")
    assert answer.code == 0, answer.sentence
    file = tmp_path / "out" / "bare-GGUF" / "bare-F16.gguf"
    again = quantkit("gguf", file, "-t", "q8_0", "--mtp", "drop", "-o", tmp_path / "again")
    assert again.code == 2
    assert "--mtp drop needs a checkpoint; bare-F16 is a GGUF and keeps its layers" in again.sentence


@pytest.mark.parametrize(
    ("case", "lacking", "words"),
    [
        ("qwen35", "mtp.norm.weight", "tensor mtp.norm.weight is missing from the checkpoint"),
        ("qwen35", "mtp.pre_fc_norm_hidden.weight", "tensor mtp.pre_fc_norm_hidden.weight is missing"),
        ("qwen35", "mtp.layers.0.input_layernorm.weight", "tensor mtp.layers.0.input_layernorm.weight is missing"),
        (
            "qwen35moe-separate",
            "model.layers.2.mlp.experts.3.up_proj.weight",
            "mlp.experts.3.up_proj.weight is missing",
        ),
        ("qwen3next", "model.layers.0.linear_attn.A_log", "linear_attn.A_log is missing from the checkpoint"),
    ],
)
def test_a_tensor_that_is_missing_is_named(case: str, lacking: str, words: str, tmp_path: Path) -> None:
    with open_checkpoint(str(write_checkpoint(case, tmp_path / case))) as checkpoint:
        tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name != lacking}
        assert len(tensors) == len(checkpoint.tensors) - 1
        family = find_family(checkpoint.config)
        with pytest.raises(CheckpointError, match=words):
            map_tensors(family, family.sizes(checkpoint.config, tensors), tensors)


def test_a_checkpoint_that_lost_its_draft_layer_converts_without_one(tmp_path: Path) -> None:
    with open_checkpoint(str(write_checkpoint("qwen35", tmp_path / "qwen35"))) as checkpoint:
        assert checkpoint.config["text_config"]["mtp_num_hidden_layers"] == 1
        tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith("mtp.")}
        family = find_family(checkpoint.config)
        sizes = family.sizes(checkpoint.config, tensors)
        keys = {key.name: key.value for key in family.keys(family.gguf_arch, sizes)}
        mapped = {tensor.name for tensor in map_tensors(family, sizes, tensors)}
    assert keys["qwen35.block_count"] == 4
    assert "qwen35.nextn_predict_layers" not in keys
    assert len(keys["qwen35.attention.recurrent_layers"]) == 4
    assert not [name for name in mapped if name.startswith("blk.4.")]


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("qwen35-tied-equal-heads", {"linear_value_head_dim": 32}, "only with equal ones"),
        ("qwen35-tied-equal-heads", {"linear_num_value_heads": 3}, "does not divide by linear_num_key_heads 2"),
        ("qwen35-tied-equal-heads", {"mtp_num_hidden_layers": 2}, "mtp_num_hidden_layers is 2, but llama.cpp runs"),
        ("qwen35-tied-equal-heads", {"layer_types": ["full_attention"] * 3}, "must list the kinds of 4 layers"),
        ("qwen35-tied-equal-heads", {"layer_types": ["sliding_attention"] * 4}, "layer_types contains 'sliding_att"),
        ("qwen35-tied-equal-heads", {"attn_output_gate": False}, "attn_output_gate is false"),
        (
            "qwen35-tied-equal-heads",
            {"rope_parameters": {"rope_theta": 1e7, "rope_type": "default", "mrope_section": [4, 0, 0]}},
            r"mrope_section is \[4, 0, 0\]",
        ),
        (
            "qwen35-tied-equal-heads",
            {"rope_parameters": {"rope_theta": 1e7, "rope_type": "llama3", "factor": 8.0}},
            "cannot express rope scaling 'llama3'",
        ),
        ("qwen35moe-separate", {"num_experts_per_tok": 7}, "num_experts_per_tok 7 is more than num_experts 6"),
        ("qwen3next", {"norm_topk_prob": False}, "norm_topk_prob is false"),
        ("qwen3next", {"mlp_only_layers": [1]}, "mlp_only_layers is"),
    ],
)
def test_what_llama_cpp_cannot_express_is_refused_by_config_alone(
    case: str, changes: dict[str, Any], words: str
) -> None:
    check_config(expected(case).config)
    with pytest.raises(QuantkitError, match=words):
        check_config({**expected(case).config, **changes})
