"""config.json of Step 3.5: what differs by layer, under one name for the hub's settings and transformers'."""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.hyperparameters import number, size
from quantkit.families.base.layer_kinds import layer_kinds
from quantkit.families.base.refusals import SILU, only
from quantkit.forward.config_keys import Config

NAME = "Step 3.5"
FULL, SLIDING = "full_attention", "sliding_attention"
# the part of a head that turns, a constant of llama.cpp's graph
ROTATED = {FULL: 0.5, SLIDING: 1.0}
_DRAFTS = "num_nextn_predict_layers"
_OTHER_NAMES = {
    "num_key_value_heads": "num_attention_groups",
    "n_routed_experts": "moe_num_experts",
    "num_experts_per_tok": "moe_top_k",
}
"""transformers' names -> the hub's."""


def kind_of(config: Config, layer: int) -> str:
    """The kind of attention; layers for later tokens have entries after the model's own, or none and no window."""
    kinds = config["layer_types"]
    return str(kinds[layer]) if layer < len(kinds) else FULL


def slides(config: Config, layer: int) -> bool:
    """Whether a layer has a window."""
    return kind_of(config, layer) == SLIDING


def is_routed(config: Config, layer: int) -> bool:
    """Whether a layer has experts."""
    return bool(config["mlp_layer_types"][layer] == "sparse")


def query_heads(config: Config, layer: int) -> int:
    """Heads of a layer."""
    return int(config["num_sliding_attention_heads" if slides(config, layer) else "num_attention_heads"])


def key_heads(config: Config, layer: int) -> int:
    """Key-value heads of a layer."""
    return int(config["num_sliding_key_value_heads" if slides(config, layer) else "num_key_value_heads"])


def limits_of(config: Config, name: str, layers: int) -> list[float]:
    """The limit of each layer, 0 for none."""
    stated = [float(limit or 0) for limit in config.get(name) or ()]
    return [*stated, *[0.0] * layers][:layers]


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """The names of transformers for settings with two; refuse what llama.cpp's graph does not have.

    Raises:
        CheckpointError: a list is not one of entries for layers, or a token has more experts than there are.
        UnsupportedError: a setting has another value than llama.cpp's graph.
    """
    n_layer = size(config, "num_hidden_layers")
    for name, on_hub in _OTHER_NAMES.items():
        config[name] = size(config, on_hub, name)
    only(config, "hidden_act", *SILU, family=NAME)
    for name in ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_bidirectional_attention"):
        only(config, name, False, family=NAME)
    for name in ("norm_expert_weight", "use_head_wise_attn_gate", "use_moe", "use_moe_router_bias", "gating"):
        only(config, name, True, family=NAME)
    only(config, "moe_router_activation", "sigmoid", family=NAME)
    only(config, "moe_every_n_layer", 1, family=NAME)
    only(config, "query_pre_attn_scalar", size(config, "head_dim"), family=NAME)
    only(config, "yarn_only_types", [FULL], family=NAME)
    if not all(config.get("use_rope_layers") or [True]):
        raise UnsupportedError(
            f"config.json: use_rope_layers is {config['use_rope_layers']!r}, but llama.cpp runs {NAME} only with"
            " rotary positions in each layer; a GGUF cannot express this setting"
        )
    drafts = int(number(config, _DRAFTS) or 0)
    stated = config.get("layer_types") or [FULL] * n_layer
    own = stated[:n_layer] if isinstance(stated, list) else stated
    layer_kinds({"layer_types": own}, n_layer, (FULL, SLIDING))
    later = config.get("mtp_layer_types") or stated[n_layer:]
    config["layer_types"] = [*own, *later, *[FULL] * drafts][: n_layer + drafts]
    if SLIDING not in own:
        raise UnsupportedError(
            f"config.json: layer_types has no {SLIDING}, but llama.cpp runs {NAME} only with a window in some layers"
        )
    config["mlp_layer_types"] = _feed_kinds(config, n_layer)
    _read_heads(config)
    config["rope_parameters"] = _rope(config, len(stated))
    config["rope_theta"] = config["rope_scaling"] = None
    for name in ("swiglu_limits", "swiglu_limits_shared"):
        limits = config.get(name)
        if limits is not None and not (isinstance(limits, list) and all(_is_limit(limit) for limit in limits)):
            raise CheckpointError(f"config.json: {name} must list a limit of each layer, 0 for none, not {limits!r}")
    if config.get("rms_norm_eps") is None:
        # under another name, because the converter then writes its key last
        config["norm_eps"] = number(config, "norm_eps") or 1e-5
    used, experts = size(config, "num_experts_per_tok"), size(config, "n_routed_experts")
    if used > experts:
        raise CheckpointError(f"config.json: moe_top_k {used} is more than moe_num_experts {experts}")
    return config


def _is_limit(limit: object) -> bool:
    return limit is None or (isinstance(limit, int | float) and not isinstance(limit, bool) and limit >= 0)


def _feed_kinds(config: Config, n_layer: int) -> list[str]:
    """`dense` or `sparse` for each layer; the hub's config.json lists the numbers of the layers with experts."""
    kinds = config.get("mlp_layer_types")
    if kinds is not None:
        own = {"mlp_layer_types": kinds[:n_layer] if isinstance(kinds, list) else kinds}
        return layer_kinds(own, n_layer, ("dense", "sparse"), name="mlp_layer_types") or []
    stated = config.get("moe_layers_enum")
    numbers = stated.split(",") if isinstance(stated, str) else stated
    if numbers is None:
        # transformers' class
        numbers = range(3, n_layer)
    try:
        routed = {int(layer) for layer in numbers if str(layer).strip()}
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"config.json: moe_layers_enum must list the numbers of the layers with experts, not {stated!r}"
        ) from error
    return ["sparse" if layer in routed else "dense" for layer in range(n_layer)]


def _read_heads(config: dict[str, Any]) -> None:
    """Set the numbers of heads of layers with a window, which the hub's config.json has in an object."""
    other = config.get("attention_other_setting") or {}
    if not isinstance(other, Mapping):
        raise CheckpointError(f"config.json: attention_other_setting must be an object, not {other!r}")
    only(other, "attention_type", SLIDING, family=NAME)
    only(other, "head_dim", size(config, "head_dim"), family=NAME)
    for ours, theirs in (
        ("num_attention_heads", "num_attention_heads"),
        ("num_key_value_heads", "num_attention_groups"),
    ):
        name = ours.replace("num_", "num_sliding_")
        if other.get(theirs) is not None:
            config[name] = size(other, theirs)
        elif config.get(name) is None:
            config[name] = size(config, ours)
    heads, shared = config["num_sliding_attention_heads"], config["num_sliding_key_value_heads"]
    if heads % shared:
        raise CheckpointError(
            f"config.json: {heads} heads of layers with a window do not divide by {shared} key-value heads; correct one"
            " of the sizes"
        )


def _rope(config: Config, entries: int) -> dict[str, Any]:
    """The rotary settings by kind of layer. The hub's config.json has lists with an entry per layer (`entries`).

    Raises:
        CheckpointError: a list is too short, or layers of one kind have two bases.
        UnsupportedError: layers rotate another part of a head than llama.cpp's graph.
    """
    nested = config.get("rope_parameters") or {}
    if not isinstance(nested, Mapping):
        raise CheckpointError(f"config.json: rope_parameters must be an object, not {nested!r}; correct it")
    result = {}
    for kind in (FULL, SLIDING):
        layers = [layer for layer, stated in enumerate(config["layer_types"]) if stated == kind]
        settings = dict(nested[kind]) if isinstance(nested.get(kind), Mapping) else {}
        if kind == FULL and not settings:
            settings = dict(config.get("rope_scaling") or {})
        for name, listed in (("rope_theta", "rope_theta"), ("partial_rotary_factor", "partial_rotary_factors")):
            stated = config.get(listed)
            if name in settings or stated is None:
                continue
            if not isinstance(stated, list):
                settings[name] = stated
                continue
            values = {stated[layer] for layer in layers if layer < len(stated)}
            if len(values) > 1 or len(stated) < min(entries, size(config, "num_hidden_layers")):
                raise CheckpointError(
                    f"config.json: {listed} must have an entry for each layer, and the same one for all layers of"
                    f" {kind}; correct it"
                )
            if values:
                settings[name] = values.pop()
        share = number(settings, "partial_rotary_factor")
        if layers and (1.0 if share is None else share) != ROTATED[kind]:
            raise UnsupportedError(
                f"config.json: layers of {kind} rotate {1.0 if share is None else share:g} of a head, but llama.cpp"
                f" runs {NAME} only with {ROTATED[kind]:g}; a GGUF cannot express this setting"
            )
        if layers or kind == FULL:
            result[kind] = {"rope_theta": 10000.0, **settings}
    sliding = result.get(SLIDING, {})
    only(sliding, "rope_type", "default", family=f"{NAME}'s layers with a window")
    return result
