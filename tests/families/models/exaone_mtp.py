"""K-EXAONE as published: after the layers one that predicts a later token, under names of its own."""

from typing import Any

from tests.families.models.case import Case, Tensors, weight
from tests.families.models.free_late import AUTO, EXAONE4_5
from tests.families.models.free_mixtures import EXAONE_MOE


def with_later_token(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The layer for a later token is dense, as the first one is."""
    published, hidden = dict(tensors), config["hidden_size"]
    for name, value in tensors.items():
        if name.startswith("model.layers.0."):
            published[name.replace("model.layers.0.", "mtp.layers.0.")] = value
    own = {"fc": (hidden, 2 * hidden)} | dict.fromkeys(
        ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"), (hidden,)
    )
    published |= {f"mtp.{name}.weight": weight(0, name, shape) for name, shape in own.items()}
    return {**config, "num_nextn_predict_layers": 1}, published


def shared_by_two(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """EXAONE 4.5 with one layer's weights for two later tokens."""
    text = {**config["text_config"], "mtp_share_layers": True, "num_nextn_predict_layers": 2}
    published, hidden = dict(tensors), text["hidden_size"]
    for name, value in tensors.items():
        if ".layers.0." in name and "visual" not in name and "vision" not in name:
            published["mtp.layers.0." + name.split(".layers.0.")[1]] = value
    own = {"fc": (hidden, 2 * hidden)} | dict.fromkeys(
        ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"), (hidden,)
    )
    published |= {f"mtp.{name}.weight": weight(0, name, shape) for name, shape in own.items()}
    return {**config, "text_config": text}, published


CASES = (
    Case("exaone-moe-later-token", EXAONE_MOE, publish=with_later_token, newest=True),
    Case("exaone4.5-later-tokens", EXAONE4_5, publish=shared_by_two, newest=True, auto=AUTO),
)
