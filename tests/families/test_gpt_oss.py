"""gpt-oss: MXFP4 blocks keep their values and their place, in GGUFs of floats too; what is not gpt-oss is refused."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import find_family, map_tensors
from quantkit.llamacpp.evaluation import logits
from quantkit.outputs.model import model_from_checkpoint
from tests.families.expected import expected, write_checkpoint
from tests.families.models import TOKENS, all_cases
from tests.families.models.case import weight
from tests.families.models.gpt_oss import BASE, YARN, packed
from tests.helpers.conversions import to_gguf

NAME = "gpt-oss-mxfp4"
SCALES = "model.layers.0.mlp.experts.down_proj_scales"
PUBLISHED = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "swiglu_limit": 7.0}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(NAME, tmp_path / "published")


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def file_type_of(path: Path) -> int:
    return int(gguf.GGUFReader(path).fields["general.file_type"].contents())


def test_blocks_stay_blocks_in_a_gguf_of_floats_and_of_mxfp4(checkpoint: Path, tmp_path: Path) -> None:
    floats, blocks = to_gguf(checkpoint, "f16", tmp_path), to_gguf(checkpoint, "mxfp4", tmp_path)
    assert (file_type_of(floats), file_type_of(blocks)) == (38, 38)
    assert types(floats)["blk.0.attn_q.weight"] == "F16"
    assert types(blocks)["blk.0.attn_q.weight"] == "Q8_0"
    for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
        assert types(floats)[f"blk.2.{name}.weight"] == types(blocks)[f"blk.2.{name}.weight"] == "MXFP4"


def test_blocks_hold_the_values_of_the_format_document(checkpoint: Path, tmp_path: Path) -> None:
    """Dequantized by the gguf package, against what the packing of the test took them for."""
    known, case = expected(NAME), all_cases()[NAME][1]
    tensors = {name: weight(case.seed, name, tuple(shape)) for name, shape in known.native["layout"].items()}
    packed({}, tensors)  # leaves the blocks' own values in `tensors`
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(to_gguf(checkpoint, "f32", tmp_path)).tensors}
    gate_up = tensors["model.layers.1.mlp.experts.gate_up_proj"].transpose(0, 2, 1)
    down = tensors["model.layers.1.mlp.experts.down_proj"].transpose(0, 2, 1)
    for name, value in (("gate", gate_up[:, 0::2]), ("up", gate_up[:, 1::2]), ("down", down)):
        tensor = stored[f"blk.1.ffn_{name}_exps.weight"]
        assert np.array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), value), name


def test_unpacked_on_demand_the_logits_are_transformers(checkpoint: Path, tmp_path: Path) -> None:
    """The blocks' values as float32: what llama.cpp's rounding of activations adds is not in the way here."""
    unpacked = to_gguf(checkpoint, "f32", tmp_path, allow_requantize=True)
    assert set(types(unpacked).values()) == {"F32"}
    ours, known = logits(unpacked, TOKENS), expected(NAME).logits
    assert np.abs(ours - known).max() / known.std() < 0.02
    assert (ours.argmax(axis=1) == known.argmax(axis=1)).all()


def test_quantizing_the_blocks_again_wants_leave(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"pass -t mxfp4 or -t bf16.*or add --allow-requantize"):
        to_gguf(checkpoint, "q4_0", tmp_path)
    assert types(to_gguf(checkpoint, "q4_0", tmp_path, allow_requantize=True))["blk.0.ffn_up_exps.weight"] == "Q4_0"


def test_blocks_without_scales_are_refused(checkpoint: Path) -> None:
    with open_checkpoint(str(checkpoint)) as opened:
        tensors = {name: tensor for name, tensor in opened.tensors.items() if name != SCALES}
        family = find_family(opened.config)
        with pytest.raises(CheckpointError, match=r"down_proj_scales is missing.*cannot be read"):
            map_tensors(family, family.sizes(opened.config), tensors)


def test_the_published_config_is_taken() -> None:
    family = find_family(PUBLISHED)
    values = {key.name: key.value for key in family.keys("gpt-oss", family.sizes(PUBLISHED))}
    assert (values["gpt-oss.rope.scaling.factor"], values["gpt-oss.attention.sliding_window"]) == (32.0, 128)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"swiglu_limit": 5.0}, "swiglu_limit is 5.0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ({"rope_scaling": {**YARN, "beta_fast": 16}}, "beta_fast is 16"),
        ({"rope_scaling": {**YARN, "attention_factor": 2.0}}, "attention_factor is 2"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope scaling 'linear'"),
    ],
)
def test_what_llama_cpp_would_run_otherwise_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        find_family(PUBLISHED).sizes({**PUBLISHED, **BASE, **change})


def test_mxfp4_of_another_family_is_refused_by_name(checkpoint: Path) -> None:
    config = (checkpoint / "config.json").read_text().replace("GptOssForCausalLM", "LlamaForCausalLM")
    (checkpoint / "config.json").write_text(config)
    with (
        open_checkpoint(str(checkpoint)) as opened,
        pytest.raises((UnsupportedError, CheckpointError), match=r"mlp\..*(missing|not part of the Llama family)"),
    ):
        model_from_checkpoint(opened)


def test_a_ramp_that_llama_cpp_rounds_is_told() -> None:
    config = expected("gpt-oss").config
    family = find_family(config)
    rope = {"rope_type": "yarn", "factor": 32.0, "rope_theta": 150000.0, "original_max_position_embeddings": 4096}
    cautions = [
        list(family.cautions(family.sizes({**config, "rope_scaling": {**rope, "truncate": truncate}})))
        for truncate in (True, False)
    ]
    assert cautions[0] == [] and "rounds the ends" in cautions[1][0]
