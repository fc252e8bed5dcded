"""The kind of each layer, as config.json lists them."""

from collections.abc import Collection, Mapping
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.units import listed


def layer_kinds(
    config: Mapping[str, Any], n_layer: int, kinds: Collection[str], *, name: str = "layer_types", shown: str = ""
) -> list[str] | None:
    """The kinds that the list `name` gives, one per layer; None without the list.

    `shown`: the words for the supported kinds in the message; by default `kinds`.

    Raises:
        CheckpointError: the value is not a list of one entry per layer.
        UnsupportedError: a layer is of another kind than `kinds`.
    """
    stated = config.get(name)
    if stated is None:
        return None
    if not isinstance(stated, list) or len(stated) != n_layer:
        raise CheckpointError(f"config.json: {name} must list the kinds of {n_layer} layers, not {stated!r}")
    for kind in stated:
        if not isinstance(kind, str) or kind not in kinds:
            supported = shown or listed(kinds)
            raise UnsupportedError(
                f"config.json: {name} contains {kind!r}, but llama.cpp supports only {supported} here"
            )
    return stated
