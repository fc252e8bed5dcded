"""Folders of quantized weights to write: which linears are quantized, and the layout of every file."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.checkpoint.remote_code import NO_CODE, RemoteCode, remote_code
from quantkit.errors import UnsupportedError, UsageError
from quantkit.families.base.native import Native
from quantkit.forward.layer_linears import layer_linears
from quantkit.forward.linears import LayerLinears, Linear
from quantkit.outputs.quantized_linears import require_fit, skipped_linears
from quantkit.packed.config import QUANTIZE_CONFIG
from quantkit.packed.formats import DTYPES, FolderRequest, Format, Names, Stored
from quantkit.packed.layout import Parts, Shard, every_tensor, folder_bytes, matrix_name, plan_folder
from quantkit.packed.registry import FORMATS
from quantkit.packed.writer import json_bytes

__all__ = ["DTYPES", "FolderPlan", "FolderRequest", "all_layers", "plan_folder_of"]


@dataclass(frozen=True)
class Matrix:
    """The place of an expert's linear: matrix `index` of the `count` matrices of `stack`."""

    stack: str
    index: int
    count: int


QUANTIZED_KEYS = ("quantization_config", "compression_config", "quantization")
"""The keys of config.json that a quantized source may have; the folder gets its own."""


@dataclass(frozen=True)
class FolderPlan:
    """A folder that can be written. `quantized`: linears by name; `weights`: in file order; `head`: the output head.

    `stacks`: where the experts' linears are, by name, if the format has all experts of a layer in one tensor.
    `model_type`: of the folder's config.json, if its loader has a name of its own. `code`: the Python files of
    the source that the folder's configs name.
    """

    request: FolderRequest
    folder: Path
    layers: tuple[LayerLinears, ...]
    quantized: Mapping[str, Linear]
    kept: tuple[str, ...]
    weights: tuple[tuple[str, Parts], ...]
    head: str = "lm_head"
    stacks: Mapping[str, Matrix] = field(default_factory=dict)
    model_type: str | None = None
    code: RemoteCode = NO_CODE

    @property
    def format(self) -> Format:
        return FORMATS[self.request.method]

    @property
    def label(self) -> str:
        """The format in folder names: AWQ, FP8."""
        return self.format.label

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """The weight files: their headers, and the place of every tensor."""
        return tuple(plan_folder(every_tensor(self.weights), self.request.max_shard))

    @cached_property
    def _bytes(self) -> tuple[int, int]:
        return folder_bytes(self.weights, self.request.max_shard)

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        return self._bytes[0]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the tensors alone."""
        return self._bytes[1]

    @property
    def names(self) -> Names:
        """The linears as the configuration names them."""
        matrices = [
            tensor.name.removesuffix(".weight")
            for shard in self.shards
            for tensor in shard.places
            if tensor.name.endswith(".weight") and len(tensor.shape) == 2
        ]

        def below(prefix: str) -> list[str]:
            return [name for name in matrices if name.startswith(prefix.removesuffix("*"))]

        return Names(self.quantized.keys(), self.kept, self.head, below)

    def stored(self, linear: Linear) -> Stored:
        """The tensors of a quantized linear: suffix -> safetensors dtype, shape."""
        return self.format.stored(self.request, linear.n_in, linear.n_out)

    def tensor(self, linear: str, suffix: str) -> str:
        """The tensor that stores a part of a quantized linear, as `FolderWriter` names it."""
        matrix = self.stacks.get(linear)
        return f"{linear}.{suffix}" if matrix is None else matrix_name(f"{matrix.stack}.{suffix}", matrix.index)

    def quantization_config(self) -> dict[str, Any]:
        """The quantization_config of config.json."""
        return self.format.config(self.request, self.names)

    def config(self, native: Mapping[str, Any]) -> dict[str, Any]:
        """The folder's config.json."""
        left_out = ("torch_dtype", "dtype", *QUANTIZED_KEYS)
        config = {key: value for key, value in native.items() if key not in left_out}
        if self.model_type is not None:
            config["model_type"] = self.model_type
        return {**config, "torch_dtype": self.request.dtype, **self.format.config_keys(self.request, self.names)}

    def more_files(self) -> dict[str, bytes]:
        """Files beside config.json that loaders of the method read."""
        if self.request.method != "gptq":
            return {}
        return {QUANTIZE_CONFIG: json_bytes(self.quantization_config())}


def all_layers(native: Native) -> tuple[LayerLinears, ...]:
    """The linears of every layer."""
    names = native.tensors.keys()
    return tuple(
        layer_linears(native.architecture, native.config, number, names) for number in range(native.decoder.n_layers)
    )


def plan_folder_of(native: Native, layers: Sequence[LayerLinears], request: FolderRequest, folder: Path) -> FolderPlan:
    """Decide which linears are quantized and the place of every byte.

    Raises:
        UnsupportedError: a matrix does not fit the format or the group size; or one tensor has all experts, which no
            loader of the method reads.
        UsageError: a --skip pattern matches nothing, or all linears are skipped.
    """
    folder_format = FORMATS[request.method]
    label = folder_format.label
    folder_format.check(request)
    if request.dtype is None:
        request = replace(request, dtype=source_dtype(native))
    reason = native.architecture.unpacked(native.config) if request.method in ("awq", "gptq") else None
    if folder_format.for_mlx:
        reason = native.architecture.not_mlx
    if reason is not None:
        raise UnsupportedError(f"{reason}, so quantkit writes no {label} folder of this model; convert it to GGUF")
    linears = [linear for layer in layers for entry in layer.inputs for linear in entry.linears]
    stacked = next((linear for linear in linears if linear.index is not None), None)
    if stacked is not None:
        raise UnsupportedError(
            f"{stacked.name} contains several matrices of a layer in one tensor, which no loader of {label} reads;"
            " convert this model to GGUF"
        )
    stacks = _stacks(native, layers, label) if folder_format.for_mlx else {}
    skipped = skipped_linears(linears, request.skip)
    quantized = {linear.name: linear for linear in linears if linear.name not in skipped}
    if not quantized:
        raise UsageError("--skip leaves no linear to quantize")
    unstacked = next((name for name in stacks if name not in quantized), None)
    if unstacked is not None:
        raise UsageError(
            f"--skip matches {unstacked}, but {label} has all experts of a layer in one tensor; leave that --skip out"
        )
    last = {entry.linears[-1].name for layer in layers for entry in layer.inputs}
    require_fit(quantized.values(), last, request, stacks)
    kept = (*skipped, *native.decoder.outer_linears, *draft_layers(native))
    weights = tuple(_weights(native, quantized, request, stacks))
    head = native.architecture.head
    model_type = native.architecture.mlx_type if folder_format.for_mlx else None
    code = remote_code(native.checkpoint.folder, native.config)
    return FolderPlan(request, folder, tuple(layers), quantized, kept, weights, head, stacks, model_type, code)


def _stacks(native: Native, layers: Sequence[LayerLinears], label: str) -> dict[str, Matrix]:
    """The places of the experts' linears in mlx-lm's stacks, by name.

    Raises UnsupportedError if mlx-lm's model has not been compared with the architecture.
    """
    experts, stacks = native.architecture.experts, {}
    for layer in layers:
        routed = [entry for entry in layer.inputs if entry.expert is not None]
        if routed and (experts is None or experts.expert is None or experts.mlx is None):
            raise UnsupportedError(
                f"{label} has all experts of a layer in one tensor; quantkit does not know mlx-lm's names of them"
                " for this model, so choose another type"
            )
        for entry in routed:
            assert experts is not None and experts.expert is not None and entry.expert is not None
            one = experts.expert
            roles = {one.gate: "gate_proj", one.up: "up_proj", one.down: "down_proj"}
            for linear in entry.linears:
                at, _, suffix = linear.name.rpartition(one.at.format(entry.expert))
                stacks[linear.name] = Matrix(f"{at}{experts.mlx}{roles[suffix]}", entry.expert, len(routed) // 2)
    return stacks


def draft_layers(native: Native) -> tuple[str, ...]:
    """The places of layers that predict a later token (MTP), which are not quantized: "mtp.*" or "model.layers.46.*".

    Their tensors have a layer number, but the decoder does not have such a layer.
    """
    decoder = native.decoder
    trunk_root = decoder.at(0).partition(".")[0]
    places = set()
    for name, layer in native.layers.items():
        if layer is None and (numbered := re.match(r"(.*?)\.\d+\.", name)):
            root = name.partition(".")[0]
            places.add(f"{numbered[0]}*" if root == trunk_root else f"{root}.*")
    return tuple(sorted(places))


def _weights(
    native: Native, quantized: Mapping[str, Linear], request: FolderRequest, stacks: Mapping[str, Matrix]
) -> Iterator[tuple[str, Parts]]:
    """Every weight of the folder in file order, with the tensors that store it."""
    linears = {linear.weight: linear for linear in quantized.values()}
    stored = FORMATS[request.method].stored

    @cache
    def parts(n_in: int, n_out: int, count: int | None = None) -> Parts:
        """The tensors of a quantized linear, or of the `count` linears of a stack."""
        outer = () if count is None else (count,)
        return tuple((suffix, dtype, outer + shape) for suffix, (dtype, shape) in stored(request, n_in, n_out).items())

    for name in in_file_order(native):
        linear = linears.get(name)
        if linear is None:
            yield name, (("", kept_dtype(native, name, request), tuple(native.tensors[name].shape)),)
        elif (matrix := stacks.get(linear.name)) is None:
            yield f"{linear.name}.", parts(linear.n_in, linear.n_out)
        elif matrix.index == 0:
            yield f"{matrix.stack}.", parts(linear.n_in, linear.n_out, matrix.count)


def in_file_order(native: Native) -> list[str]:
    """The checkpoint's tensors: the embedding, the layers in order, the last norm and the head."""
    decoder, layers = native.decoder, native.layers

    def place(name: str) -> int:
        layer = layers[name]
        if layer is None:
            return -1 if name.startswith(decoder.embedding) else decoder.n_layers
        return layer

    return sorted(native.tensors, key=place)


def kept_dtype(native: Native, name: str, request: FolderRequest) -> str:
    """The dtype of an unquantized tensor. A 16-bit model's tensors of 32 bits (a router's bias) keep theirs.

    Values that were dequantized have 32 bits as they are read; the folder stores them in 16.
    """
    if native.is_quantized(name):
        return request.stored_dtype
    embedding = native.stored_type(native.decoder.embedding + ".weight")
    if native.stored_type(name) == np.float32 and embedding != np.float32:
        return "F32"
    return request.stored_dtype


def source_dtype(native: Native) -> str:
    """The 16-bit type of the source: float16 if its embedding is, else bfloat16."""
    stored = native.stored_type(native.decoder.embedding + ".weight")
    return "float16" if stored == np.float16 else "bfloat16"
