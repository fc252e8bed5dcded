"""Reference logits of a native checkpoint, computed by the forward that its family describes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantkit.families.base.registry import find_architecture
from quantkit.forward import Decoder
from quantkit.forward.weights import Array, Read, ReadRows, Weights, rows_of_whole


def reference_logits(
    read: Read,
    config: Mapping[str, Any],
    tokens: Sequence[int],
    *,
    rows: ReadRows | None = None,
    names: Collection[str] | None = None,
    states: bool = False,
) -> Array:
    """Logits (n_tokens, n_vocab) in float32 for one sequence of token ids.

    Args:
        read: returns a whole tensor by its Hugging Face name, in any float dtype; LookupError for an unknown name.
        config: config.json of an architecture that transformers has.
        rows: returns rows start..stop of the matrix (prod(shape[:-1]), shape[-1]); without it whole tensors are read.
        names: the names of all tensors; without it each optional tensor is tried.
        states: return the hidden states (n_tokens, hidden) before the output head instead.

    Raises:
        UnsupportedError: the forward does not support the architecture, activation or rope type.
    """
    weights = Weights(read, rows or rows_of_whole(read), names)
    architecture = find_architecture(config)
    return Decoder(weights, config, replace(architecture, head="") if states else architecture).run(tokens)
