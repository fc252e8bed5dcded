"""A LoRA adapter as llama.cpp's adapter GGUF, from headers: the names, shapes and types of its tensors.

Format: llama.cpp's convert_lora_to_gguf.py and src/llama-adapter.cpp. For a tensor NAME of the base's GGUF there are
NAME.lora_a (r, in) and NAME.lora_b (out, r). llama.cpp adds alpha / r times their product.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from quantkit.adapters.adapter import Adapter
from quantkit.adapters.matching import Matcher, Product, check_pairs
from quantkit.checkpoint import Checkpoint, TensorInfo
from quantkit.checkpoint.jsonfile import shown
from quantkit.errors import CheckpointError, UnsupportedError, UsageError
from quantkit.families import MappedTensor
from quantkit.gguf.file_types import FileType, file_type
from quantkit.gguf.keyvalues import KeyValue, array, float32, string, uint32
from quantkit.gguf.layout import FileLayout, lay_out
from quantkit.gguf.metadata import QUANTIZATION_KEYS, QUANTIZATION_VERSION, general_keys
from quantkit.outputs.model import origin_of

TYPES = ("f32", "f16", "bf16", "q8_0")
_BLOCK = 32
_EMBEDDING = "token_embd.weight"
_MERGE = "merge it with --adapter instead"
# Parts of an adapter that are not low-rank matrices, as messages name them.
_NOT_PRODUCTS = {
    "weight": "a layer that was trained whole",
    "saved_bias": "a bias that was trained",
    "bias": "a bias of its own",
    "tokens": "single tokens that were trained",
    "magnitude": "DoRA's magnitudes",
}


@dataclass(frozen=True)
class Cut:
    """Rows and columns of one matrix of an adapter, in a new order; None takes all. `factor` multiplies them."""

    tensor: TensorInfo
    rows: NDArray[np.int64] | None = None
    columns: NDArray[np.int64] | None = None
    transposed: bool = False
    factor: float = 1.0

    def read(self, adapter: Adapter) -> NDArray[np.float32]:
        """The matrix, float32."""
        values = adapter.read(self.tensor)
        values = values.T if self.transposed else values
        values = values if self.rows is None else values[self.rows]
        values = values if self.columns is None else values[:, self.columns]
        if self.factor != 1.0:
            values = (values.astype(np.float64) * self.factor).astype(np.float32)
        return np.ascontiguousarray(values)

    @property
    def shape(self) -> tuple[int, int]:
        shape = reversed(self.tensor.shape) if self.transposed else self.tensor.shape
        rows, columns = shape
        return len(self.rows) if self.rows is not None else rows, (
            len(self.columns) if self.columns is not None else columns
        )


@dataclass(frozen=True)
class AdapterTensor:
    """A tensor of an adapter GGUF: one matrix, or those of all experts stacked along a new first axis."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    cuts: tuple[Cut, ...]


@dataclass(frozen=True)
class AdapterFile:
    """An adapter GGUF to write. `origin`: that of the base, with the adapter's, for the record."""

    type: FileType
    folder: Path
    stem: str
    family: str
    tensors: tuple[AdapterTensor, ...]
    layout: FileLayout
    origin: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return self.folder / self.layout.name

    @property
    def parameters(self) -> int:
        return sum(int(np.prod(tensor.shape)) for tensor in self.tensors)


def plan_adapter_file(base: Checkpoint, adapter: Adapter, type_: str, output: Path, name: str | None) -> AdapterFile:
    """The GGUF of `adapter` for the GGUF of `base`, to be written into output/NAME-GGUF/.

    Raises:
        UsageError: `type_` is not one of TYPES.
        CheckpointError: the adapter does not fit the base.
        UnsupportedError: an adapter GGUF cannot hold a part of the adapter.
    """
    if type_ not in TYPES:
        raise UsageError(f"an adapter GGUF has no type {type_!r}; pass one of {', '.join(TYPES)}")
    check_pairs(adapter)
    matcher, config = Matcher(base), adapter.config
    arch = matcher.family.arch(matcher.family.sizes(base.config, base.tensors))
    # the alpha from which llama.cpp computes the scaling of a module with the usual settings
    alpha = config.scaling_of("") * config.rank
    tensors = _tensors(matcher, adapter, _products(matcher, adapter), alpha, file_type(type_))
    keys = _keys(adapter, arch, alpha, tensors)
    kind, name = file_type(type_), name or adapter.name
    stem = f"{name}-{kind.label}-LoRA"
    layout = lay_out(stem, keys, [(tensor.name, tensor.shape, tensor.type) for tensor in tensors])[0]
    origin = {**origin_of(base), "adapters": [adapter.record]}
    return AdapterFile(kind, output / f"{name}-GGUF", stem, matcher.family.name, tensors, layout, origin)


def _keys(adapter: Adapter, arch: str, alpha: float, tensors: Sequence[AdapterTensor]) -> list[KeyValue]:
    """The keys in the order of llama.cpp's converter."""
    shapes = [(tensor.name, tensor.shape) for tensor in tensors]
    keys = general_keys(adapter.folder, adapter.name, arch, shapes, gguf.GGUFType.ADAPTER)
    index = next(number for number, key in enumerate(keys) if key.key == "general.type") + 1
    keys.insert(index, string("adapter.type", "lora"))
    keys.append(float32("adapter.lora.alpha", alpha))
    if adapter.config.invocation_tokens:
        keys.append(array("adapter.alora.invocation_tokens", GGUFValueType.UINT32, adapter.config.invocation_tokens))
    return [*keys, uint32(QUANTIZATION_KEYS[0], QUANTIZATION_VERSION)]


def _products(matcher: Matcher, adapter: Adapter) -> list[Product]:
    """The low-rank matrices in the order of the adapter's file."""
    products = []
    by_place = sorted(adapter.modules.items(), key=lambda item: min(part.offset for part in item[1].values()))
    for module, parts in by_place:
        name = matcher.find(module, "weight")
        if matcher.is_tied_head(module) or (name == matcher.names.get(matcher.embedding) and _is_tied(matcher)):
            raise UnsupportedError(
                f"{adapter.source} changes {shown(module)}, and the base ties the embedding and the output head;"
                f" llama.cpp cannot change one of them alone, {_MERGE}"
            )
        if name is None:
            raise matcher.missing(adapter, module, "weight")
        for part, description in _NOT_PRODUCTS.items():
            tensor = parts.get(part)
            # PEFT saves the base's own embedding beside matrices for it
            if tensor is not None and not (part == "weight" and ".base_layer." in tensor.name):
                raise UnsupportedError(
                    f"{adapter.source} has {description} ({shown(tensor.name)}), which an adapter GGUF cannot hold;"
                    f" {_MERGE}"
                )
        product = matcher.product(adapter, module, name)
        if product is not None:
            products.append(product)
    return products


def _is_tied(matcher: Matcher) -> bool:
    return matcher.head not in matcher.names


def _tensors(
    matcher: Matcher, adapter: Adapter, products: Sequence[Product], alpha: float, kind: FileType
) -> tuple[AdapterTensor, ...]:
    adapted = {product.name: product for product in products}
    targets = [mapped for mapped in matcher.mapped if any(part.source in adapted for part in mapped.parts)]
    for mapped in targets:
        sources = [part.source for part in mapped.parts]
        missing = [source for source in sources if source not in adapted]
        if missing:
            present = next(source for source in sources if source in adapted)
            raise UnsupportedError(
                f"{adapter.source} changes {present} but not {missing[0]}; llama.cpp has both in"
                f" {mapped.name}, {_MERGE}"
            )
    if not targets:
        raise CheckpointError(f"{adapter.source} has no low-rank matrices; save the adapter again")
    places = {product.name: index for index, product in enumerate(products)}
    pairs = [_pair(adapter, mapped, adapted, alpha, kind) for mapped in _in_order(targets, places)]
    return tuple(tensor for pair in pairs for tensor in pair)


def _in_order(targets: Sequence[MappedTensor], places: Mapping[str, int]) -> list[MappedTensor]:
    """The order of llama.cpp's script: that of the adapter, but the experts of a layer together, once all were read."""
    last: dict[str, int] = {}
    for mapped in targets:
        if len(mapped.parts) > 1:
            layer = mapped.name.rpartition(".ffn_")[0]
            last[layer] = max(last.get(layer, 0), *(places[part.source] for part in mapped.parts))

    def key(mapped: MappedTensor) -> tuple[int, str]:
        first = mapped.parts[0].source
        if len(mapped.parts) == 1:
            return places[first], ""
        return last[mapped.name.rpartition(".ffn_")[0]], first

    return sorted(targets, key=key)


def _pair(
    adapter: Adapter,
    mapped: MappedTensor,
    adapted: dict[str, Product],
    alpha: float,
    kind: FileType,
) -> tuple[AdapterTensor, AdapterTensor]:
    first = adapted[mapped.parts[0].source]
    if first.embedding and mapped.name != _EMBEDDING:
        raise UnsupportedError(
            f"{adapter.source} changes the embedding {first.name}; llama.cpp applies adapters to {_EMBEDDING} only,"
            f" {_MERGE}"
        )
    if mapped.adjust is not None or mapped.cut_shape is not None:
        raise UnsupportedError(
            f"{adapter.source} changes {first.name}, which llama.cpp stores in another form ({mapped.name}); {_MERGE}"
        )
    lefts, rights = [], []
    for part in mapped.parts:
        product, take = adapted[part.source], part.take
        if product.rank != first.rank or take.transposed != product.transposed:
            raise UnsupportedError(
                f"{adapter.source} changes {product.name}, which llama.cpp stores in another form ({mapped.name});"
                f" {_MERGE}"
            )
        out, inputs = (take.columns, take.rows) if take.transposed else (take.rows, take.columns)
        factor = adapter.config.scaling_of(product.module) * product.rank / alpha if alpha else 1.0
        if product.embedding:
            # llama.cpp looks rows of A up by token
            lefts.append(Cut(product.a, rows=take.rows, transposed=True))
            rights.append(Cut(product.b, rows=take.columns, factor=factor))
        else:
            lefts.append(Cut(product.a, columns=inputs))
            rights.append(Cut(product.b, rows=out, factor=factor))
    stacked = len(mapped.shape) > 2
    return tuple(  # type: ignore[return-value]
        _tensor(f"{mapped.name}.lora_{letter}", tuple(cuts), kind, stacked=stacked)
        for letter, cuts in (("a", lefts), ("b", rights))
    )


def _tensor(name: str, cuts: tuple[Cut, ...], kind: FileType, *, stacked: bool) -> AdapterTensor:
    shape: tuple[int, ...] = cuts[0].shape
    type_ = kind.tensor_type
    if type_ == GGMLQuantizationType.Q8_0 and shape[-1] % _BLOCK:
        type_ = GGMLQuantizationType.F16
    return AdapterTensor(name, (len(cuts), *shape) if stacked else shape, type_, cuts)
