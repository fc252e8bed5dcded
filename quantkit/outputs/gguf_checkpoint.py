"""A GGUF as a checkpoint: its tensors under the hub's names, with config.json and tokenizer of the base model.

The rules of the family map a checkpoint's tensors to a GGUF. Here they are read backwards: each source tensor gets the
rows that the GGUF took from it. What a rule adds (Gemma's norms) is subtracted again; rules whose computation has no
inverse are refused.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Access, Checkpoint, TensorInfo, open_checkpoint
from quantkit.checkpoint.checkpoint import Origin, WeightFiles
from quantkit.checkpoint.folder import parse_config, read_small_file
from quantkit.checkpoint.quantized.settings import without_quantization
from quantkit.checkpoint.sources import parse_source
from quantkit.errors import UnsupportedError
from quantkit.families import Family, find_family, map_tensors
from quantkit.families.base.hyperparameters import DRAFT_LAYERS, Hyperparameters
from quantkit.families.base.mapping import names_at, numbered_layers
from quantkit.families.base.output_head import resolve_output_head
from quantkit.families.base.registry import complete_architecture
from quantkit.outputs.gguf_rows import not_undone, read_source_rows, stored_rows
from quantkit.outputs.gguf_source import model_from_gguf


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
    folder, recorded = _base_folder(base, offline=offline)
    config = parse_config(read_small_file(folder, "config.json", base), base)
    config = without_quantization(complete_architecture(config))
    family = find_family(config)
    sizes = family.sizes(config)
    if family.scalars is not None:
        raise UnsupportedError(
            f"a GGUF of {family.name} has some tensors of the checkpoint as numbers in its keys, which quantkit does"
            " not read back; convert the original checkpoint"
        )
    model = model_from_gguf(path)
    try:
        stored = {tensor.name: tensor for tensor in model.tensors}
        if sizes.n_draft and not any(name.startswith(f"blk.{sizes.n_layer}.") for name in stored):
            config |= {key: 0 for key in DRAFT_LAYERS if config.get(key)}
            sizes = family.sizes(config)
        shapes = dict(_sources(family, sizes, stored, path.name))
        infos = {name: _info(name, shape, path) for name, shape in shapes.items()}
        places = stored_rows(map_tensors(family, sizes, infos), infos, stored, path.name, base)
        hashes: Mapping[str, str] = model.origin["header_sha256"]
        files = _GgufFiles(infos, hashes, {}, finish=model.close)
        note = f"the weights are those of {path.name}, dequantized as they are read; {base} gives config and tokenizer"
        checkpoint = Checkpoint(Origin(model.name, str(path), folder, base=recorded), config, files, (note,))
        checkpoint.overlay(
            lambda name, start, stop, _: read_source_rows(model, places[name], infos[name].shape[-1], start, stop),
            (),
            model.name,
        )
        resolve_output_head(checkpoint)
    except BaseException:
        model.close()
        raise
    return checkpoint


def _base_folder(base: str, *, offline: bool) -> tuple[Path, str]:
    """The folder of `base`, and its name in records of origin."""
    where = parse_source(base)
    if isinstance(where, Path):
        return where.resolve(), where.resolve().name
    with open_checkpoint(base, Access(offline, headers_only=True)) as opened:
        return opened.folder, f"{where.recorded}@{opened.revision}" if opened.revision else where.recorded


def _sources(
    family: Family, sizes: Hyperparameters, stored: Mapping[str, object], where: str
) -> Iterator[tuple[str, Any]]:
    """Names and shapes of the source tensors of the GGUF tensors `stored`: of the first rule for each target."""
    taken: dict[str, str] = {}
    for rule in family.rules:
        if rule.scales or (rule.when and not rule.when(sizes)) or (rule.tied_to_embedding and sizes.tied):
            continue
        for layer in numbered_layers(rule, sizes) if "{layer}" in rule.target else (None,):
            target = rule.target.format(layer=layer)
            if target not in stored or not (layer is None or rule.layers is None or layer in set(rule.layers(sizes))):
                continue
            if taken.setdefault(target, rule.source) != rule.source:
                continue
            if rule.times is not None:
                raise not_undone(target, where)
            shape = tuple(family.dimension(sizes, name, layer) for name in rule.shape)
            yield from ((name, shape) for name in names_at(rule, rule.source, sizes, layer))


def _info(name: str, shape: tuple[int, ...], path: Path) -> TensorInfo:
    return TensorInfo(name, "F32", shape, str(path.resolve()), 0, 4 * prod(shape), linear=name)
