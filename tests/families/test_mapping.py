"""Tensor rules: names, shapes and row orders; what does not fit is told apart in words."""

from dataclasses import dataclass

import numpy as np
import pytest

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import all_families, find_family, map_tensors, read_hyperparameters
from quantkit.families.base.rotary import interleave_rotary_rows
from quantkit.families.llama import llama3_rope_factors

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 50,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Shaped:
    shape: tuple[int, ...]


def tensors() -> dict[str, Shaped]:
    shapes = {"model.embed_tokens.weight": Shaped((50, 64)), "model.norm.weight": Shaped((64,))}
    for layer in range(2):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "input_layernorm.weight": Shaped((64,)),
            at + "post_attention_layernorm.weight": Shaped((64,)),
            at + "self_attn.q_proj.weight": Shaped((64, 64)),
            at + "self_attn.k_proj.weight": Shaped((32, 64)),
            at + "self_attn.v_proj.weight": Shaped((32, 64)),
            at + "self_attn.o_proj.weight": Shaped((64, 64)),
            at + "mlp.gate_proj.weight": Shaped((96, 64)),
            at + "mlp.up_proj.weight": Shaped((96, 64)),
            at + "mlp.down_proj.weight": Shaped((64, 96)),
        }
    return shapes


def mapped(shapes: dict[str, Shaped], **config: object) -> dict[str, tuple[int, ...]]:
    merged = {**CONFIG, **config}
    result = map_tensors(find_family(merged), read_hyperparameters(merged), shapes)
    return {tensor.name: tensor.shape for tensor in result}


def test_every_tensor_gets_llama_cpps_name() -> None:
    actual = mapped(tensors())
    assert actual["blk.1.ffn_down.weight"] == (64, 96)
    assert actual["token_embd.weight"] == (50, 64)
    assert "output.weight" not in actual
    assert len(actual) == 20


def test_a_missing_tensor_a_wrong_shape_and_a_stranger_are_told_apart() -> None:
    missing = tensors()
    del missing["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        mapped(missing)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing.*tie_word_embeddings"):
        mapped(tensors(), tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"\[96, 64\].*config\.json makes it \[128, 64\]"):
        mapped(tensors(), intermediate_size=128)
    with pytest.raises(CheckpointError, match="beyond the 1 layers"):
        mapped(tensors(), num_hidden_layers=1)
    with pytest.raises(UnsupportedError, match=r"q_norm\.weight is not part of the Llama family.*nearest"):
        mapped(tensors() | {"model.layers.0.self_attn.q_norm.weight": Shaped((16,))})
    assert mapped(tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": Shaped((8,))}) == mapped(tensors())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 0}, "hidden_size must be a positive whole number"),
        ({"hidden_size": "64"}, "hidden_size must be a positive whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"vocab_size": None}, "no vocab_size"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "does not divide by num_attention_heads"),
        ({"num_key_value_heads": 3}, "does not divide by num_key_value_heads"),
        ({"head_dim": 15}, "must be even"),
        ({"rope_scaling": {"type": "linear"}}, "needs a factor"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2}}, "longrope"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_scaling": "yarn"}, "must be an object"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": float("inf")}},
            "factor must be a positive number, not inf",
        ),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, but llama.cpp runs at most 512"),
        ({"num_local_experts": 10**5}, "num_local_experts is 100000, but llama.cpp runs at most 1024"),
        ({"num_hidden_layers": 513}, "num_hidden_layers is 513, but llama.cpp runs at most 512"),
        ({"num_hidden_layers": 512, "num_nextn_predict_layers": 1}, "512 layers and 1 for later tokens"),
        ({"num_local_experts": 1025}, "num_local_experts is 1025, but llama.cpp runs at most 1024"),
        ({"num_hidden_layers": 500, "num_local_experts": 1000}, "500000 experts in total; at most 200000"),
        ({"num_experts_per_tok": 10**5}, "num_experts_per_tok is 100000"),
        ({"num_attention_heads": 10**5}, "num_attention_heads is 100000, but at most 10000 is supported"),
        ({"vocab_size": 1 << 25}, "vocab_size is 33554432, but at most 4194304 is supported"),
        ({"hidden_size": 1 << 21}, "hidden_size is 2097152, but at most 1048576 is supported"),
        ({"intermediate_size": 10**5000}, "intermediate_size is a whole number of 16610 bits"),
        ({"max_position_embeddings": 2**31}, "max_position_embeddings is 2147483648"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be a finite 32-bit float, not inf"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite 32-bit float, not nan"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps must be a finite 32-bit float, not a whole number of 1329 bits"),
    ],
)
def test_a_config_that_cannot_be_true_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedError), match=words):
        read_hyperparameters({**CONFIG, **change})


def test_an_unknown_architecture_names_at_most_the_three_nearest() -> None:
    with pytest.raises(
        UnsupportedError, match=r"nearest by name are MixtralForCausalLM, MistralForCausalLM and Mistral3"
    ):
        find_family({"architectures": ["MixtraForCausalLM"]})
    with pytest.raises(UnsupportedError, match="names no architecture"):
        find_family({"model_type": "novel"})


def test_no_two_families_claim_an_architecture() -> None:
    claimed = [name for family in all_families() for name in family.architectures]
    assert len(claimed) == len(set(claimed))


def test_interleaved_rows_rotate_as_half_split_ones_do() -> None:
    """The two rotary conventions give the same attention scores once rows are reordered."""
    rng = np.random.default_rng(0)
    heads, size, hidden, length = 3, 8, 16, 5
    q, k = rng.standard_normal((2, heads * size, hidden))
    x = rng.standard_normal((length, hidden))
    angle = np.outer(np.arange(length), 10000.0 ** (-np.arange(0, size, 2) / size))
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def halves(weight: np.ndarray) -> np.ndarray:
        a, b = np.split((x @ weight.T).reshape(length, heads, size), 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def neighbours(weight: np.ndarray) -> np.ndarray:
        y = (x @ weight.T).reshape(length, heads, size // 2, 2)
        a, b = y[..., 0], y[..., 1]
        return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(length, heads, size)

    order = interleave_rotary_rows(heads, heads * size)
    scores = np.einsum("ihd,jhd->hij", halves(q), halves(k))
    assert np.allclose(scores, np.einsum("ihd,jhd->hij", neighbours(q[order]), neighbours(k[order])))
    assert not np.allclose(scores, np.einsum("ihd,jhd->hij", neighbours(q), neighbours(k)))


def test_llama3_rope_factors_are_those_of_the_published_rule() -> None:
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    }
    config = {**CONFIG, "head_dim": 128, "rope_scaling": rope, "rope_theta": 500000.0}
    factors = llama3_rope_factors(read_hyperparameters(config))
    assert factors is not None
    assert factors.dtype == np.float32
    # Worked by hand in float64: wavelength = 2 pi theta^(2i/128); kept under 2048, divided by 8 over 8192.
    wavelength = 2 * np.pi * 500000.0 ** (np.arange(0, 128, 2) / 128)
    smooth = (8192 / wavelength - 1) / 3
    expected = np.where(wavelength < 2048, 1, np.where(wavelength > 8192, 8, 1 / ((1 - smooth) / 8 + smooth)))
    assert np.allclose(factors, expected, rtol=2e-5)
    assert llama3_rope_factors(read_hyperparameters(CONFIG)) is None


def test_a_rope_setting_of_null_is_an_absent_one() -> None:
    rope = {"rope_type": "llama3", "factor": 8.0}
    nulls = dict.fromkeys(("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    config = {**CONFIG, "max_position_embeddings": 131072, "rope_theta": 500000.0}
    given = llama3_rope_factors(read_hyperparameters({**config, "rope_scaling": rope | nulls}))
    absent = llama3_rope_factors(read_hyperparameters({**config, "rope_scaling": rope}))
    assert given is not None and absent is not None
    assert given.tolist() == absent.tolist()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16}}, "beta_fast is 16"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0}}, "attention_factor is 1"),
    ],
)
def test_what_llama_cpp_would_ignore_is_refused(change: dict[str, object], sentence: str) -> None:
    config = {**CONFIG, **change}
    with pytest.raises(UnsupportedError, match=sentence):
        find_family(config).sizes(config)


@pytest.mark.parametrize(("window", "n_cautions"), [(4096, 1), (None, 0), (32768, 0)])
def test_a_window_that_llama_cpp_does_not_know_is_told(window: int | None, n_cautions: int) -> None:
    config = {
        **CONFIG,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "max_position_embeddings": 32768,
        "sliding_window": window,
    }
    family = find_family(config)
    assert len(list(family.cautions(family.sizes(config)))) == n_cautions
