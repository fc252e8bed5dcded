"""Families with layer norms and fused queries, keys and values, and OLMo's line."""

from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors

BLOOM = {
    "model_type": "bloom",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "n_layer": 3,
    "n_head": 4,
    "layer_norm_epsilon": 1e-5,
    "seq_length": 512,
}


def without_prefix(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As saved from the model without its head's class: names without `transformer.`."""
    return config, {name.removeprefix("transformer."): value for name, value in tensors.items()}


def bigscience(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As BLOOM itself was published: its first names for sizes, no prefix."""
    other = {"hidden_size": "n_embed", "n_head": "num_attention_heads"}
    return without_prefix({other.get(name, name): value for name, value in config.items()}, tensors)


CASES = (
    Case("bloom", BLOOM),
    # six heads: the slopes of ALiBi follow another rule where their count is no power of two
    Case("huozi", {**BLOOM, "hidden_size": 96, "n_head": 6}, publish=bigscience),
    Case("bloom-own-head", {**BLOOM, "tie_word_embeddings": False, "seq_length": 256}),
)
