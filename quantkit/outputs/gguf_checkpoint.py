"""A GGUF as a checkpoint: its tensors under the hub's names, with config.json and tokenizer of the base model.

The rules of the family map a checkpoint's tensors to a GGUF. Here they are read backwards: each source tensor gets the
rows that the GGUF took from it. Rules that compute values (Gemma's norms) have no way back and are refused.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint import Access, Checkpoint, TensorInfo, open_checkpoint
from quantkit.checkpoint.checkpoint import Origin, WeightFiles
from quantkit.checkpoint.folder import parse_config, read_small_file
from quantkit.checkpoint.quantized.settings import without_quantization
from quantkit.checkpoint.sources import parse_source
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import Family, find_family, map_tensors
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.mapped import MappedTensor
from quantkit.families.base.output_head import resolve_output_head
from quantkit.families.base.reading import read_in_order
from quantkit.families.base.registry import complete_architecture
from quantkit.outputs.gguf_source import model_from_gguf
from quantkit.outputs.model import Model, ModelTensor, widen

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _StoredRows:
    """Rows of a source tensor in the GGUF. `rows[i]`: the row of `tensor` that is row `sources[i]` of the source.

    `order`: the elements of a vector in the source's order; None if they are the same.
    """

    tensor: ModelTensor
    sources: NDArray[np.int64]
    rows: NDArray[np.int64]
    order: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class _GgufFiles(WeightFiles):
    """The open GGUF in the place of weight files."""

    finish: Callable[[], object] = lambda: None

    def close(self) -> None:
        self.finish()


def checkpoint_of_gguf(path: Path, base: str, *, offline: bool = False) -> Checkpoint:
    """The GGUF `path` as a checkpoint; `base`: a folder or hub id with its config.json and tokenizer files.

    Raises:
        CheckpointError: the GGUF is damaged, or `base` is another model.
        UnsupportedError: the family's tensors cannot be read back from a GGUF.
        HubError: `base` cannot be fetched.
    """
    folder = _base_folder(base, offline=offline)
    config = parse_config(read_small_file(folder, "config.json", base), base)
    config = without_quantization(complete_architecture(config))
    family = find_family(config)
    sizes = family.sizes(config)
    model = model_from_gguf(path)
    try:
        stored = {tensor.name: tensor for tensor in model.tensors}
        shapes = dict(_sources(family, sizes, stored))
        infos = {name: _info(name, shape, path) for name, shape in shapes.items()}
        places = _stored_rows(map_tensors(family, sizes, infos), infos, stored, path.name, base)
        hashes: Mapping[str, str] = model.origin["header_sha256"]
        files = _GgufFiles(infos, hashes, {}, finish=model.close)
        note = f"the weights are those of {path.name}, dequantized as they are read; {base} gives config and tokenizer"
        checkpoint = Checkpoint(Origin(model.name, str(path), folder), config, files, (note,))
        checkpoint.overlay(lambda name, start, stop, _: _read(model, places[name], start, stop), (), model.name)
        resolve_output_head(checkpoint)
    except BaseException:
        model.close()
        raise
    return checkpoint


def _base_folder(base: str, *, offline: bool) -> Path:
    where = parse_source(base)
    if isinstance(where, Path):
        return where.resolve()
    with open_checkpoint(base, Access(offline, headers_only=True)) as opened:
        return opened.folder


def _sources(family: Family, sizes: Hyperparameters, stored: Mapping[str, object]) -> Iterator[tuple[str, Any]]:
    """Names and shapes of the source tensors of the GGUF tensors `stored`: of the first rule for each target."""
    taken: dict[str, str] = {}
    for rule in family.rules:
        if rule.scales or (rule.when and not rule.when(sizes)) or (rule.tied_to_embedding and sizes.tied):
            continue
        layers = rule.layers(sizes) if rule.layers else range(sizes.n_layer)
        for layer in layers if "{layer}" in rule.target else (None,):
            target = rule.target.format(layer=layer)
            if target not in stored or taken.setdefault(target, rule.source) != rule.source or rule.draft:
                continue
            shape = tuple(family.dimension(sizes, name, layer) for name in rule.shape)
            for expert in range(sizes.n_expert) if "{expert}" in rule.source else (None,):
                for part in rule.parts or (None,):
                    yield rule.source.format(layer=layer, expert=expert, part=part), shape


def _info(name: str, shape: tuple[int, ...], path: Path) -> TensorInfo:
    return TensorInfo(name, "F32", shape, str(path.resolve()), 0, 4 * prod(shape), linear=name)


def _stored_rows(
    mapped: list[MappedTensor],
    infos: Mapping[str, TensorInfo],
    stored: Mapping[str, ModelTensor],
    where: str,
    base: str,
) -> dict[str, list[_StoredRows]]:
    """Where the rows of each source tensor are in the GGUF."""
    places: dict[str, list[_StoredRows]] = {name: [] for name in infos}
    for tensor in mapped:
        if tensor.values is not None:
            continue
        takes = [part.take for part in tensor.parts]
        vector = len(tensor.shape) == 1
        turned = any(take.transposed or (take.columns is not None and not vector) for take in takes)
        computed = tensor.adjust or tensor.factors or tensor.cut_shape or tensor.is_product
        if computed or tensor.is_mxfp4 or turned:
            raise UnsupportedError(
                f"tensor {tensor.name} of {where} was computed from the checkpoint's, which cannot be undone; convert"
                " the original checkpoint"
            )
        stored_tensor = stored[tensor.name]
        if tuple(stored_tensor.shape) != tuple(tensor.shape):
            raise CheckpointError(
                f"tensor {tensor.name} of {where} is {list(stored_tensor.shape)}, but config.json of {base} makes it"
                f" {list(tensor.shape)}; pass the model's own base"
            )
        for number, part in enumerate(tensor.parts):
            rows = np.arange(number * tensor.part_rows, (number + 1) * tensor.part_rows, dtype=np.int64)
            order = part.take.columns if vector else None
            sources = part.take.rows if part.take.rows is not None else rows - rows[0]
            if vector and part.take.rows is not None:
                order, sources = part.take.rows, rows - rows[0]
            places[part.source].append(
                _StoredRows(stored_tensor, sources, rows, None if order is None else np.argsort(order))
            )
    unmapped = stored.keys() - {tensor.name for tensor in mapped}
    if unmapped:
        raise UnsupportedError(f"{where} has tensor {min(unmapped)}, which config.json of {base} does not state")
    for name, pieces in places.items():
        covered = sum(len(piece.rows) for piece in pieces)
        if covered != infos[name].n_rows:
            raise UnsupportedError(f"{where} does not have all rows of {name}; convert the original checkpoint")
    return places


def _read(model: Model, places: list[_StoredRows], start: int, stop: int) -> NDArray[np.float32]:
    """Rows start..stop of a source tensor, float32."""
    result = np.empty((stop - start, places[0].tensor.shape[-1]), np.float32)
    for stored_rows in places:
        chosen = np.flatnonzero((stored_rows.sources >= start) & (stored_rows.sources < stop))
        if not len(chosen):
            continue
        tensor = stored_rows.tensor

        def read(first: int, last: int, tensor: ModelTensor = tensor) -> NDArray[np.float32]:
            return widen(model.read_rows(tensor.name, first, last), tensor)

        values = read_in_order(read, stored_rows.rows[chosen])
        result[stored_rows.sources[chosen] - start] = (
            values if stored_rows.order is None else values[:, stored_rows.order]
        )
    return result
