"""The check of logits also runs a file as llama.cpp does by default: with flash attention and a cache of f16."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.safetensors_file import write_safetensors
from quantkit.families.base import registry
from quantkit.llamacpp.evaluation import logits
from tests.families.expected import expected
from tests.families.models import VOCAB, all_cases, native_weights, weight, write_tokenizer
from tests.helpers.command import quantkit

HEADS, NOPE, ROPE, LATENT, HIDDEN, FEED = 4, 16, 8, 32, 64, 96
PLM: dict[str, Any] = {
    "architectures": ["PLMForCausalLM"],
    "model_type": "plm",
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "relu2",
    "hidden_size": HIDDEN,
    "intermediate_size": FEED,
    "kv_lora_rank": LATENT,
    "max_position_embeddings": 512,
    "num_attention_heads": HEADS,
    "num_hidden_layers": 1,
    "num_key_value_heads": HEADS,
    "q_lora_rank": None,
    "qk_nope_head_dim": NOPE,
    "qk_rope_head_dim": ROPE,
    "rms_norm_eps": 1e-6,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "v_head_dim": NOPE,
    "vocab_size": VOCAB,
}
SHAPES = {
    "model.embed_tokens.weight": (VOCAB, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    "model.layers.0.input_layernorm.weight": (HIDDEN,),
    "model.layers.0.post_attention_layernorm.weight": (HIDDEN,),
    "model.layers.0.self_attn.q_proj.weight": (HEADS * (NOPE + ROPE), HIDDEN),
    "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": (LATENT + ROPE, HIDDEN),
    "model.layers.0.self_attn.kv_a_layernorm.weight": (LATENT,),
    "model.layers.0.self_attn.kv_b_proj.weight": (HEADS * 2 * NOPE, LATENT),
    "model.layers.0.self_attn.o_proj.weight": (HIDDEN, HEADS * NOPE),
    "model.layers.0.mlp.up_proj.weight": (FEED, HIDDEN),
    "model.layers.0.mlp.down_proj.weight": (HIDDEN, FEED),
}


def write(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", {name: ("F32", tensors[name]) for name in sorted(tensors)})
    write_tokenizer(folder, "smollm")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def converted(source: Path, out: Path) -> tuple[int, str, Path]:
    """The exit code, the message, and the file, which is kept under another name if a check failed."""
    answer = quantkit("gguf", source, "-t", "f32", "-o", out)
    return answer.code, answer.stderr, next(out.rglob("*.gguf*"))


def test_a_file_on_which_llama_cpp_aborts_with_flash_attention_fails_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTKIT_FAMILIES", str(Path(__file__).with_name("user_families")))
    registry._users.cache_clear()
    source = write(tmp_path / "plm", PLM, {name: weight(0, name, shape) for name, shape in SHAPES.items()})
    code, message, file = converted(source, tmp_path / "out")
    assert (code, file.name) == (3, "plm-F32.gguf.failed")
    assert "llama.cpp stopped without an answer: ggml.c:" in message and "GGML_ASSERT" in message
    assert (
        "with llama.cpp's default settings (flash attention, a cache of f16), which `quantkit run` has too" in message
    )
    # the check without them had passed, and the sentence says so truly
    assert np.isfinite(logits(file, [3, 5])).all()
    ran = quantkit("run", file, "-p", "a", "--raw", "-n", "1")
    assert ran.code == 1 and "GGML_ASSERT" in ran.stderr


def test_values_that_a_cache_of_f16_cannot_hold_fail_in_a_sentence(tmp_path: Path) -> None:
    known = expected("llama")
    tensors = dict(native_weights(all_cases()["llama"][1], known.native["layout"]))
    for name, values in tensors.items():
        factor = {"v_proj.weight": 1e6, "o_proj.weight": 1e-6}.get(name.split("self_attn.")[-1], 1)
        tensors[name] = values * np.float32(factor)
    code, message, file = converted(write(tmp_path / "large", known.config, tensors), tmp_path / "out")
    assert (code, file.name) == (3, "large-F32.gguf.failed")
    assert "llama.cpp gave values that are not finite; this is with llama.cpp's default settings" in message
    assert np.isfinite(logits(file, [3, 5])).all()
