"""Which layers of a mixture are dense, which have experts, and which follow the model's own to predict further tokens.

DeepSeek-V3 (arXiv 2412.19437, section 2.2) calls the last kind multi-token prediction; llama.cpp calls it nextn.
"""

from quantkit.families.base.family import Rule
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size


def nextn_count(sizes: Hyperparameters) -> int:
    """`num_nextn_predict_layers`: how many layers predict a further token."""
    key = "num_nextn_predict_layers"
    return (optional_size(sizes.config, key) or 0) if sizes.config.get(key) else 0


def nextn_layers(sizes: Hyperparameters) -> range:
    """The numbers of the layers that predict a further token; they follow the model's own."""
    return range(sizes.n_layer, sizes.n_layer + nextn_count(sizes))


def all_layers(sizes: Hyperparameters) -> range:
    """The model's own layers and those that predict a further token."""
    return range(sizes.n_layer + nextn_count(sizes))


def dense_layers(sizes: Hyperparameters) -> range:
    """The first `first_k_dense_replace` layers, which have no experts."""
    key = "first_k_dense_replace"
    stated = (optional_size(sizes.config, key) or 0) if sizes.config.get(key) else 0
    return range(min(stated, sizes.n_layer))


def routed_layers(sizes: Hyperparameters) -> range:
    """The layers with experts; the layers that predict a further token are among them."""
    return range(len(dense_layers(sizes)), sizes.n_layer + nextn_count(sizes))


def nextn_rules(at: str = "model.layers.{layer}") -> tuple[Rule, ...]:
    """What a layer that predicts a further token has beyond a layer's tensors."""
    to = "blk.{layer}.nextn"
    return (
        Rule(f"{at}.eh_proj.weight", f"{to}.eh_proj.weight", ("hidden", "two_hidden"), layers=nextn_layers),
        Rule(f"{at}.enorm.weight", f"{to}.enorm.weight", ("hidden",), layers=nextn_layers),
        Rule(f"{at}.hnorm.weight", f"{to}.hnorm.weight", ("hidden",), layers=nextn_layers),
        *(
            Rule(f"{at}.{source}.weight", f"{to}.{target}.weight", shape, required=False, layers=nextn_layers)
            for source, target, shape in (
                ("embed_tokens", "embed_tokens", ("vocab", "hidden")),
                ("shared_head.head", "shared_head_head", ("vocab", "hidden")),
                ("shared_head.norm", "shared_head_norm", ("hidden",)),
            )
        ),
    )
