"""The logits of a model in its native form, by the forward that its family describes."""

from collections.abc import Collection, Mapping, Sequence
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
) -> Array:
    """Logits (n_tokens, n_vocab) in float32 for one sequence of token ids.

    `config` is config.json of an architecture that transformers has. `read(name)` returns a whole tensor by its
    Hugging Face name, in any float dtype, and raises LookupError where there is none. `rows(name, start, stop)` returns
    rows of it, seen as a matrix (prod(shape[:-1]), shape[-1]); without it whole tensors are read. `names` are those of
    all tensors; without them each optional tensor is tried.

    Raises:
        UnsupportedError: an architecture, activation or rope type that the forward does not know.
    """
    weights = Weights(read, rows or rows_of_whole(read), names)
    return Decoder(weights, config, find_architecture(config)).run(tokens)
