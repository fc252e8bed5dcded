"""The type mix of published models at their full sizes, tensors and keys by their families, against llama.cpp's own."""

import math
import re
from pathlib import Path

import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import UnsupportedError
from quantkit.families import find_family
from quantkit.gguf.file_types import FILE_TYPES
from quantkit.gguf.mix import MixOptions, MixTensor, choose_types
from quantkit.outputs.model import Model, model_from_checkpoint
from tests.families.published import MISSION, Published, write_sparse
from tests.helpers import oracle

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_BY_NAME = {model.name: model for model in MISSION}
SHAPES = (
    _BY_NAME["Mixtral 8x7B"],
    _BY_NAME["BlossomLM Yi-34B"],
    _BY_NAME["BlossomLM Qwen1.5-14B"],
    Published(
        "Llama-2-7B",
        {
            **_LLAMA,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "max_position_embeddings": 4096,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32000,
        },
        6_738_415_616,
    ),
    Published(
        "Llama-3-70B",
        {
            **_LLAMA,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "max_position_embeddings": 8192,
            "num_attention_heads": 64,
            "num_hidden_layers": 80,
            "num_key_value_heads": 8,
            "rope_theta": 500000.0,
            "vocab_size": 128256,
        },
        70_553_706_496,
    ),
    Published(
        "Qwen3-30B-A3B",
        {
            "architectures": ["Qwen3MoeForCausalLM"],
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "max_position_embeddings": 40960,
            "max_window_layers": 48,
            "mlp_only_layers": [],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "num_attention_heads": 32,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 48,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_scaling": None,
            "rope_theta": 1e6,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        30_532_122_624,
    ),
)


@pytest.mark.parametrize("published", SHAPES, ids=lambda model: re.sub(r"\W+", "-", model.name))
def test_every_file_type_mixes_a_published_model_as_llama_cpp_does(published: Published, tmp_path: Path) -> None:
    model = model_from_checkpoint(open_checkpoint(str(write_sparse(published, tmp_path / "model"))))
    try:
        assert sum(math.prod(tensor.shape) for tensor in model.tensors) == published.parameters
        unquantized = write_unquantized(published, model, tmp_path / "unquantized.gguf")
    finally:
        model.close()
    jobs = [
        oracle.Job(src=str(unquantized), dst="unused", ftype=kind.ftype, dry_run=True) for kind in FILE_TYPES.values()
    ]
    tensors = [MixTensor(tensor.name, tensor.shape, tensor.type) for tensor in model.tensors]
    different = []
    for ftype, result in zip(FILE_TYPES.values(), oracle.run_jobs(jobs), strict=True):
        if result.code and ftype.name == "q1_0":
            # no type stands in for it where rows are not whole blocks
            with pytest.raises(UnsupportedError):
                choose_types(model.sizes, ftype, tensors, MixOptions())
            continue
        assert result.code == 0, result.log[-500:]
        theirs = oracle.mix_from_log(result.log)
        choices = choose_types(model.sizes, ftype, tensors, MixOptions())
        assert [choice.name for choice in choices] == list(theirs), ftype.name
        different += [
            f"{ftype.name} {choice.name}: {choice.type.name} is not {theirs[choice.name].name}"
            for choice in choices
            if choice.type != theirs[choice.name]
        ]
    assert different == []


def write_unquantized(published: Published, model: Model, path: Path) -> Path:
    """The GGUF that the model's types are mixed from, with holes for weights."""
    family = find_family(published.config)
    keys = {
        key.name: float(key.value) if key.kind == "f32" else key.value
        for key in family.keys(family.gguf_arch, family.sizes(published.config))
    }
    tensors = [(tensor.name, tensor.shape, tensor.type) for tensor in model.tensors]
    oracle.write_sparse_gguf(path, {"general.architecture": family.gguf_arch, **keys}, tensors)
    return path
