"""Attention by blocks of queries: the logits stay those of transformers, wherever a block ends."""

import numpy as np
import pytest

from quantkit.families import reference_logits
from quantkit.forward import attention
from quantkit.forward.attention import attend
from quantkit.forward.layer import Context, Layer
from quantkit.forward.mixers import Attention
from quantkit.forward.weights import Weights
from tests.families.models import TOKENS
from tests.forward.test_architectures import assert_transformers_own, native

# What attention can be made of: shared keys, a window, a cap on scores, sinks, ALiBi, short vectors, no rope.
KINDS = ["llama", "mistral", "gemma2", "gemma3", "gpt-oss", "bloom", "deepseek-v3", "gpt2", "falcon-7b"]


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("name", KINDS)
def test_blocks_of_queries_give_the_logits_of_transformers(
    name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(TOKENS) > rows
    monkeypatch.setattr(attention, "_ROWS", rows)
    tensors, config = native(name)
    assert_transformers_own(reference_logits(tensors.__getitem__, config, TOKENS), name)


@pytest.mark.parametrize("window", [None, 1, 50, 64, 65, 100, 200])
def test_a_long_sequence_attends_as_the_plain_formula_does(window: int | None) -> None:
    rng = np.random.default_rng(5)
    n, heads, kv, size = 200, 4, 2, 8
    hidden = heads * size
    shapes = {"q": hidden, "k": kv * size, "v": kv * size, "o": hidden}
    tensors = {f"self_attn.{key}_proj.weight": rng.normal(size=(rows, hidden)) for key, rows in shapes.items()}
    x = rng.normal(size=(n, hidden))

    q, k, v = ((x @ tensors[f"self_attn.{key}_proj.weight"].T).reshape(n, -1, size).transpose(1, 0, 2) for key in "qkv")
    mixed = np.zeros((n, heads, size))
    for head in range(heads):
        for i in range(n):
            visible = slice(max(0, i + 1 - (window or n)), i + 1)
            weights = np.exp(k[head // 2, visible] @ q[head, i] / np.sqrt(size))
            mixed[i, head] = weights @ v[head // 2, visible] / weights.sum()
    expected = mixed.reshape(n, -1) @ tensors["self_attn.o_proj.weight"].T

    part = Attention(rope=lambda _config, _layer: None, window=lambda _config, _layer: window)
    config = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv}
    loaded = Weights(tensors.__getitem__, lambda name, start, stop: tensors[name][start:stop], tensors.keys())
    result = attend(part, Layer(loaded, config, 0, "", 1e-5), x.astype(np.float32), Context())
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=2e-5 * expected.std(), rtol=2e-5)
