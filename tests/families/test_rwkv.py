"""RWKV 6 and 7: what llama.cpp would run as another model is refused, and layouts of one model give one file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.safetensors_file import write_safetensors
from quantkit.errors import UnsupportedError
from quantkit.families import find_family
from quantkit.imatrix.file import load_imatrix
from tests.families.expected import expected, read_gguf, write_checkpoint
from tests.families.models import weight
from tests.helpers.command import quantkit
from tests.helpers.conversions import to_gguf


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("rwkv6", {"head_size_divisor": 4}, "head_size_divisor makes the epsilon of the heads' norm 0.00016"),
        ("rwkv6", {"attention_hidden_size": 64}, "attention_hidden_size is 64"),
        ("rwkv6", {"head_size": 48}, "hidden_size 128 does not divide by the width of a head, 48"),
        ("rwkv7", {"norm_eps": 1e-3}, "makes the epsilon of the heads' norm 0.064"),
        ("rwkv7", {"value_dim": [128, 64, 128]}, "value_dim is 64"),
        ("rwkv7", {"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ("rwkv7", {"norm_bias": False}, "norm_bias is false"),
        ("rwkv7", {"attn": {"layers": [1]}}, "attn is {'layers'"),
    ],
)
def test_what_llama_cpp_runs_otherwise_is_refused(name: str, change: dict[str, Any], words: str) -> None:
    config = {**expected(name).config, **change}
    with pytest.raises(UnsupportedError) as caught:
        find_family(config).sizes(config)
    assert words in str(caught.value)


def joined(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The mixtures of a layer in one tensor, and values to mix in the first layer, which nothing uses."""
    for layer in range(3):
        at = f"model.layers.{layer}.attn"
        tensors[f"{at}.x_x"] = np.concatenate([tensors.pop(f"{at}.x_{name}")[0] for name in "rwkvag"])
    for part in ("lora.0.weight", "lora.2.weight", "lora.2.bias"):
        tensors[f"model.layers.0.attn.v_lora.{part}"] = tensors[f"model.layers.1.attn.v_lora.{part}"]
    return tensors


def test_an_older_layout_gives_the_same_tensors(tmp_path: Path) -> None:
    source = write_checkpoint("rwkv7", tmp_path / "rwkv7")
    _, plain = read_gguf(to_gguf(source, "f32", tmp_path / "plain"))
    layout = expected("rwkv7").native["layout"]
    older = joined({name: weight(0, name, tuple(shape)) for name, shape in layout.items()})
    stored = {name: ("F32", np.ascontiguousarray(values)) for name, values in sorted(older.items())}
    write_safetensors(source / "model.safetensors", stored)
    _, other = read_gguf(to_gguf(source, "f32", tmp_path / "other"))
    assert plain == other


def test_awq_and_gptq_are_refused_in_a_sentence_and_imatrix_is_not(tmp_path: Path) -> None:
    source = write_checkpoint("rwkv7", tmp_path / "rwkv7")
    for method in ("awq", "gptq"):
        done = quantkit(method, source, "-o", tmp_path / "out")
        assert done.code == 1 and "transformers has no class of this RWKV, so quantkit writes no" in done.sentence
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox " * 200)
    matrix = tmp_path / "imatrix.gguf"
    settings = ("--calibration", text, "--samples", "2", "--seq-len", "64")
    done = quantkit("imatrix", source, *settings, "-o", matrix)
    assert done.code == 0, done.stderr
    assert "blk.0.time_mix_receptance.weight" in load_imatrix(matrix).values
