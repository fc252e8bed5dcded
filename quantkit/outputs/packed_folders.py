"""AWQ and GPTQ folders to write: which linears are quantized, and the layout of every file."""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quantkit.errors import UnsupportedError, UsageError
from quantkit.families.base.native import Native
from quantkit.forward.layer_linears import layer_linears
from quantkit.forward.linears import LayerLinears, Linear
from quantkit.packed.config import QUANTIZE_CONFIG, awq_config, gptq_config
from quantkit.packed.layout import MAX_SHARD, Shard, Stated, plan_folder, total_bytes
from quantkit.packed.packing import packed_shapes, why_not_packed
from quantkit.packed.writer import json_bytes
from quantkit.quant.factor import LEAST_DAMP
from quantkit.quant.grid import Grid
from quantkit.quant.rounding import check_group

DTYPES = {"float16": "F16", "bfloat16": "BF16"}
Method = Literal["awq", "gptq"]
Rounding = Literal["feedback", "nearest"]


@dataclass(frozen=True)
class FolderRequest:
    """A folder to write. `skip`: shell patterns of linears to keep; `dtype` of kept tensors; `max_shard` in bytes.

    `rounding`, of AWQ alone: with error feedback, or to nearest as in the paper. Of GPTQ alone: `damp` (the fraction of
    the Hessian's mean diagonal added to its diagonal; None: by the number of tokens), `act_order`, `static_groups`.
    """

    method: Method
    grid: Grid
    skip: tuple[str, ...] = ()
    dtype: str = "float16"
    max_shard: int = MAX_SHARD
    rounding: Rounding = "feedback"
    damp: float | None = None
    act_order: bool = True
    static_groups: bool = True

    @property
    def label(self) -> str:
        """The method in folder names: AWQ or GPTQ."""
        return self.method.upper()

    @property
    def trivial_groups(self) -> bool:
        """Whether input i is in group i // group size."""
        return self.method == "awq" or self.static_groups or not self.act_order


@dataclass(frozen=True)
class FolderPlan:
    """A folder that can be written. `quantized` are names of linears; `shards` its weight files."""

    request: FolderRequest
    folder: Path
    layers: tuple[LayerLinears, ...]
    quantized: Mapping[str, Linear]
    kept: tuple[str, ...]
    shards: tuple[Shard, ...]

    @property
    def label(self) -> str:
        """The method in folder names: AWQ or GPTQ."""
        return self.request.label

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        return total_bytes(self.shards)

    def quantization_config(self) -> dict[str, Any]:
        """The quantization_config of config.json."""
        request = self.request
        if request.method == "awq":
            return awq_config(request.grid, self.kept, self.quantized.keys())
        return gptq_config(
            request.grid,
            self.kept,
            self.quantized.keys(),
            desc_act=not request.trivial_groups,
            damp_percent=LEAST_DAMP if request.damp is None else request.damp,
            static_groups=request.static_groups,
        )

    def config(self, native: Mapping[str, Any]) -> dict[str, Any]:
        """The folder's config.json."""
        config = {key: value for key, value in native.items() if key not in ("torch_dtype", "dtype", "auto_map")}
        return {**config, "torch_dtype": self.request.dtype, "quantization_config": self.quantization_config()}

    def more_files(self) -> dict[str, bytes]:
        """Files beside config.json that loaders of the method read."""
        return {QUANTIZE_CONFIG: json_bytes(self.quantization_config())} if self.request.method == "gptq" else {}


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
    linears = [linear for layer in layers for entry in layer.inputs for linear in entry.linears]
    stacked = next((linear for linear in linears if linear.index is not None), None)
    if stacked is not None:
        raise UnsupportedError(
            f"{stacked.name} contains all experts of a layer in one tensor, which no loader of {request.label} reads;"
            " convert this model to GGUF"
        )
    for pattern in request.skip:
        if not any(fnmatch.fnmatchcase(linear.name, _anywhere(pattern)) for linear in linears):
            raise UsageError(
                f"--skip {pattern} matches no linear of this model; a linear name is for example {linears[0].name}"
            )
    skipped = {linear.name: None for linear in linears if linear.kept or _is_skipped(linear.name, request.skip)}
    quantized = {linear.name: linear for linear in linears if linear.name not in skipped}
    if not quantized:
        raise UsageError("--skip leaves no linear to quantize")
    for linear in quantized.values():
        check_group(linear.n_in, request.grid, linear.name)
        reason = why_not_packed(request.method, request.grid, linear.n_in, linear.n_out)
        if reason:
            raise UnsupportedError(f"{linear.name} does not fit {request.label}: {reason}; add --skip {linear.name}")
    kept = (*skipped, *native.decoder.outer_linears, *draft_layers(native))
    shards = plan_folder(_stated(native, quantized, request), request.max_shard)
    return FolderPlan(request, folder, tuple(layers), quantized, kept, tuple(shards))


def draft_layers(native: Native) -> tuple[str, ...]:
    """The places of layers that predict a later token (MTP), which are not quantized: "mtp.*" or "model.layers.46.*".

    Their tensors have a layer number, but the decoder does not have such a layer.
    """
    decoder = native.decoder
    own = decoder.at(0).partition(".")[0]
    places = set()
    for name in native.tensors:
        numbered = re.match(r"(.*?)\.\d+\.", name)
        if numbered is not None and decoder.layer_of(name) is None:
            root = name.partition(".")[0]
            places.add(f"{numbered[0]}*" if root == own else f"{root}.*")
    return tuple(sorted(places))


def _stated(native: Native, quantized: Mapping[str, Linear], request: FolderRequest) -> list[Stated]:
    """Every tensor of the folder in file order."""
    weights = {linear.name + linear.form.weight: linear for linear in quantized.values()}
    stated: list[Stated] = []
    for name in in_file_order(native):
        if name in weights:
            linear = weights[name]
            shapes = packed_shapes(request.method, request.grid, linear.n_in, linear.n_out)
            stated += [(f"{linear.name}.{suffix}", dtype, shape) for suffix, (dtype, shape) in shapes.items()]
        else:
            stated.append((name, kept_dtype(native, name, request), tuple(native.tensors[name].shape)))
    return stated


def in_file_order(native: Native) -> list[str]:
    """The checkpoint's tensors: the embedding, the layers in order, the last norm and the head."""
    decoder = native.decoder

    def place(name: str) -> int:
        layer = decoder.layer_of(name)
        if layer is None:
            return -1 if name.startswith(decoder.embedding) else decoder.n_layers
        return layer

    return sorted(native.tensors, key=place)


def kept_dtype(native: Native, name: str, request: FolderRequest) -> str:
    """The dtype of an unquantized tensor. A 16-bit model's tensors of 32 bits (a router's bias) keep theirs."""
    embedding = native.held_type(native.decoder.embedding + ".weight")
    if native.held_type(name) == np.float32 and embedding != np.float32:
        return "F32"
    return DTYPES[request.dtype]


def _is_skipped(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, _anywhere(pattern)) for pattern in patterns)


def _anywhere(pattern: str) -> str:
    """A plain word matches any part of a name, as in modules_to_not_convert."""
    return pattern if any(letter in pattern for letter in "*?[") else f"*{pattern}*"
