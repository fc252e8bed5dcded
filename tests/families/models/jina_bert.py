"""JinaBERT: ALiBi and a gated feed-forward. transformers has no class for it; BERT's is changed into it."""

from typing import Any

from tests.families.models.bert import BERT, encoder
from tests.families.models.case import Tensors, weight

_OWN: dict[str, Any] = {
    "architectures": ["JinaBertModel"],
    "emb_pooler": "mean",
    "feed_forward_type": "geglu",
    "position_embedding_type": "alibi",
}


def part_values(config: dict[str, Any]) -> Tensors:
    """The tensors that BERT's class does not have, by their published names."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}.mlp."
        shapes |= {at + "gated_layers.weight": (2 * inner, hidden), at + "wo.weight": (hidden, inner)}
        shapes |= {at + name: (hidden,) for name in ("wo.bias", "layernorm.weight", "layernorm.bias")}
    return {name: weight(2, name, shape) for name, shape in shapes.items()}


def _published(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    left_out = (".intermediate.", ".output.", "position_embeddings", "pooler")
    kept = {
        name: values
        for name, values in tensors.items()
        if ".attention." in name or not any(part in name for part in left_out)
    }
    return {**config, **_OWN}, {**kept, **part_values(config)}


CASES = (encoder("jina-bert", BERT, publish=_published, patch="make_jina_bert"),)
