"""A checkpoint as its native transformers architecture: config.json, and tensors under native names."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint import Checkpoint
from quantkit.checkpoint.remote_code import AUTO_MAP
from quantkit.errors import UnsupportedError
from quantkit.families import MappedTensor, canonical_checkpoint, find_architecture, find_family, read_mapped
from quantkit.families.base.family import Take
from quantkit.families.base.mapped import Part
from quantkit.forward.config_keys import given
from quantkit.forward.description import Architecture, Experts
from quantkit.forward.forward import Decoder
from quantkit.forward.weights import RoundInput, Weights


class Source(Protocol):
    """The input of the stream: weights of a native architecture under native names, read from disk on demand."""

    architecture: Architecture
    round_input: RoundInput | None
    """How a runtime rounds the inputs of linears; None where it does not."""

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json of the native architecture."""

    @property
    def tensors(self) -> Mapping[str, object]:
        """Every tensor by name."""

    @property
    def decoder(self) -> Decoder:
        """The forward of the architecture over these weights."""

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop of a tensor seen as (prod(shape[:-1]), shape[-1]); LookupError if it does not exist."""

    def whole(self, name: str) -> NDArray[Any]:
        """A tensor in its shape; LookupError if it does not exist."""


class Native:
    """config.json and tensors of the native architecture; values are read from disk on demand.

    A checkpoint may fuse all experts into one tensor (transformers 5). Here each expert has separate tensors, because
    every loader of quantized files expects them.
    """

    round_input: RoundInput | None = None

    def __init__(self, checkpoint: Checkpoint, *, nearest: bool = False) -> None:
        """`nearest`: accept the nearest architecture if none is the same (see `families.Canonical`).

        Raises:
            UnsupportedError: no native architecture exists, or the forward does not support it or a setting.
        """
        family = find_family(checkpoint.config)
        self.sizes = family.sizes(checkpoint.config, checkpoint.tensors)
        self.config, mapped = canonical_checkpoint(family, self.sizes, checkpoint.tensors, nearest=nearest)
        if family.canonical is not None or self.config.get("architectures") != checkpoint.config.get("architectures"):
            # the checkpoint's own code is for another class
            self.config = {key: value for key, value in self.config.items() if key != AUTO_MAP}
        self.checkpoint = checkpoint
        try:
            self.architecture = find_architecture(self.config)
        except UnsupportedError as error:
            if nearest:
                raise
            # a folder is to be made, which needs the forward
            raise UnsupportedError(f"{error}; convert it to GGUF") from error
        self.tensors: Mapping[str, MappedTensor] = {tensor.name: tensor for tensor in mapped}
        if self.architecture.experts:
            self.tensors = _one_by_one(self.tensors, self.architecture, self.config)

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder over these tensors."""
        return Decoder(Weights(self.whole, self.rows, self.tensors.keys()), self.config, self.architecture)

    @cached_property
    def layers(self) -> Mapping[str, int | None]:
        """The decoder's layer of each tensor; a mixture has tens of thousands."""
        layer_of = self.decoder.layer_of
        return {name: layer_of(name) for name in self.tensors}

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows start..stop of a tensor seen as (prod(shape[:-1]), shape[-1]), in its own type."""
        tensor = self.tensors[name]
        first = start - start % tensor.row_step
        last = min(-(-stop // tensor.row_step) * tensor.row_step, tensor.part_rows * len(tensor.parts))
        return read_mapped(self.checkpoint.read_rows, tensor, first, last)[start - first : stop - first]

    def whole(self, name: str) -> NDArray[Any]:
        """A tensor in its shape and type."""
        tensor = self.tensors[name]
        return self.rows(name, 0, tensor.part_rows * len(tensor.parts)).reshape(tensor.shape)

    def stored_type(self, name: str) -> np.dtype[Any]:
        """The dtype that a tensor is read in."""
        return self.checkpoint.tensors[self.tensors[name].parts[0].source].read_dtype

    def is_quantized(self, name: str) -> bool:
        """Whether the tensor is dequantized as it is read."""
        parts = self.tensors[name].parts
        return bool(parts) and self.checkpoint.tensors[parts[0].source].is_quantized


def _one_by_one(
    tensors: Mapping[str, MappedTensor], architecture: Architecture, config: Mapping[str, Any]
) -> dict[str, MappedTensor]:
    experts = architecture.experts
    assert experts is not None
    if experts.expert is None or experts.stacked is None:
        return dict(tensors)
    stacked = experts.stacked
    # the stacked gate and up of all experts, and their stacked down
    up, down = (f".{stacked.at}{linear}{stacked.form.weight}" for linear in (stacked.fused or stacked.up, stacked.down))
    result: dict[str, MappedTensor] = {}
    for name, tensor in tensors.items():
        if name.endswith((up, down)):
            result |= _split(name, tensor, "up" if name.endswith(up) else "down", experts, config)
        else:
            result[name] = tensor
    return result


def _split(
    name: str, tensor: MappedTensor, role: str, experts: Experts, config: Mapping[str, Any]
) -> dict[str, MappedTensor]:
    single, stacked = experts.expert, experts.stacked
    assert single is not None and stacked is not None
    at = name[: name.index(stacked.at)]
    inner, count = stacked.inner(config), int(given(config, *experts.count))
    rows, width = tensor.part_rows * len(tensor.parts) // count, tensor.shape[-1]
    pieces = [(single.down if role == "down" else single.up, 0, rows)]
    if role == "up" and single.gate:
        pieces = [(single.gate, 0, inner), (single.up, inner, 2 * inner)]
    split = {}
    for expert in range(count):
        for linear, start, stop in pieces:
            linear_weight = f"{at}{single.at.format(expert)}{linear}{single.form.weight}"
            if len(tensor.parts) == count:
                # published transposed: the matrix's rows are columns of the source
                part = tensor.parts[expert]
                take = replace(part.take, columns=np.arange(start, stop, dtype=np.int64))
                split[linear_weight] = MappedTensor(
                    linear_weight, (stop - start, width), (replace(part, take=take),), None, stop - start
                )
                continue
            order = np.arange(expert * rows + start, expert * rows + stop, dtype=np.int64)
            split[linear_weight] = MappedTensor(
                linear_weight, (stop - start, width), (Part(tensor.parts[0].source, Take(rows=order)),)
            )
    return split
