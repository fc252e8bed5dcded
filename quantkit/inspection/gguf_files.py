"""A GGUF file, all its shards, or a folder of several, described from headers."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from quantkit.errors import CheckpointError
from quantkit.families import Family, all_families
from quantkit.gguf.file_types import FILE_TYPES
from quantkit.gguf.projector_file import is_projector, only_hears
from quantkit.gguf.reader import GgufHeader, read_header, shard_paths
from quantkit.inspection import keys as gguf_keys
from quantkit.inspection.description import Description, File, Output, Shape
from quantkit.inspection.record import changed_since, entry_of, readable_record
from quantkit.inspection.weights import Stored, count_weights

_KINDS = {"imatrix": "importance matrix", "adapter": "LoRA adapter", "mmproj": "multimodal projector"}
_OF_SIZE = re.compile(r"-(\d+\.\d+bpw)$", re.IGNORECASE)  # of --target-size and --target-bpw


def describe_gguf(path: Path, source: str) -> Description:
    """The model of the file `path`, which may be one of its shards.

    Raises:
        CheckpointError: the file is not a valid GGUF, or a shard is missing.
    """
    headers = [read_header(shard) for shard in shard_paths(path)]
    first = headers[0]
    values = {key.key: key.value for key in first.keys}
    tensors = [slot for header in headers for slot in header.tensors]
    claimed = values.get("split.tensors.count")
    notes = []
    if claimed is not None and claimed != len(tensors):
        notes.append(f"the shards hold {len(tensors)} tensors, but split.tensors.count is {claimed}")
    shape = gguf_keys.shape_of_keys(first.keys, [slot.name for slot in tensors])
    weights = count_weights(
        (Stored(slot.name, slot.type.name, _elements(slot.shape), slot.nbytes) for slot in tensors),
        experts=shape.experts,
        experts_used=shape.experts_used,
    )
    entries, faults = readable_record(path.parent)
    record = entry_of(entries, path)
    notes += faults
    if record is not None:
        notes += changed_since(record, path.parent)
    kind = values.get("general.type")
    if kind == "imatrix":
        notes += _imatrix_words(first)
        weights = None  # sums of squares, not weights
    if is_projector(first):
        notes += _projector_words(first)
    vocabulary = gguf_keys.vocabulary_of_keys(first.keys)
    arch, name = values.get("general.architecture"), _stem(path, len(headers))
    return Description(
        name=name,
        kind="GGUF" if kind in (None, "model") else f"{_KINDS.get(str(kind), kind)} (GGUF)",
        source=source,
        family=_family(record, arch, shape),
        architecture=arch if isinstance(arch, str) else None,
        shape=shape,
        weights=weights,
        files=tuple(File(header.path.name, header.size) for header in headers),
        vocabulary=vocabulary,
        template=gguf_keys.template_of_keys(first.keys, vocabulary),
        type=_type(name, first, weights.groups[0].type if weights else None),
        origin=record,
        notes=tuple(notes),
    )


def describe_folder(folder: Path, source: str) -> Description:
    """A folder of GGUF files: the model of the first file, and every file with its type and size.

    Raises:
        CheckpointError: the folder has no valid model GGUF.
    """
    described: list[Description] = []
    broken: list[CheckpointError] = []
    for path in sorted(folder.glob("*.gguf")):
        if any(path.name == file.name for description in described for file in description.files):
            continue
        try:
            described.append(describe_gguf(path, source))
        except CheckpointError as error:
            broken.append(error)
    models = [description for description in described if description.kind == "GGUF"]
    if not models:
        raise broken[0] if broken else CheckpointError(f"{source} contains no model GGUF; pass the file itself")
    outputs = tuple(
        Output(model.name, model.type or "?", model.weights.bits_per_weight if model.weights else 0.0, model.files)
        for model in models
    )
    others = [f"{other.files[0].name} is not a model: {other.kind}" for other in described if other.kind != "GGUF"]
    several = len(models) > 1
    return replace(
        models[0],
        name=folder.resolve().name,
        kind="folder of GGUF files",
        files=tuple(file for model in models for file in model.files),
        type=None if several else models[0].type,
        outputs=outputs,
        origin=readable_record(folder)[0] or None,
        notes=tuple(dict.fromkeys((*(note for model in models for note in model.notes), *others, *map(str, broken)))),
    )


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _stem(path: Path, shards: int) -> str:
    stem = path.name.removesuffix(".gguf")
    return stem[: -len("-00001-of-00001")] if shards > 1 else stem


def _type(name: str, header: GgufHeader, most: str | None) -> str | None:
    """The type that the header states. Of a file named after its bits for each weight it states only a similar one."""
    if of_size := _OF_SIZE.search(name):
        return of_size[1].lower()
    number = gguf_keys.file_type_of({key.key: key.value for key in header.keys})
    known = next((kind.name for kind in FILE_TYPES.values() if kind.ftype == number), None)
    return known or (most.lower() if most else None)


def _family(record: object, arch: object, shape: Shape) -> str | None:
    """The family from the origin record, else from architecture and experts: Mixtral has llama's architecture."""
    recorded = record.get("family") if isinstance(record, dict) else None
    if all(family.name != recorded for family in all_families()):
        recorded = None  # of a GGUF made from a GGUF, llama.cpp's architecture is recorded
    families = [family for family in all_families() if arch in family.gguf_archs or family.name == recorded]
    fitting = [
        family
        for family in families
        if (family.name == recorded if recorded else _has_experts(family) == bool(shape.experts))
    ]
    return " or ".join(dict.fromkeys(family.models for family in fitting[:3])) or None


def _has_experts(family: Family) -> bool:
    return any("_exps." in rule.target for rule in family.rules)


def _projector_words(header: GgufHeader) -> list[str]:
    """What the projector takes and gives."""
    kind = header.value("clip.projector_type") or header.value("clip.vision.projector_type")
    size, patch = header.value("clip.vision.image_size"), header.value("clip.vision.patch_size")
    width = header.value("clip.vision.projection_dim") or header.value("clip.audio.projection_dim")
    words = [f"kind {kind}" if kind else "", f"images of {size} pixels in patches of {patch}" if size and patch else ""]
    words.append(f"vectors of {width} values for the text model" if width else "")
    hears = (
        ["it hears only" if only_hears(header) else "it hears, too"] if header.value("clip.has_audio_encoder") else []
    )
    return ["; ".join(filter(None, (*words, *hears)))] if any(words) else []


def _imatrix_words(header: GgufHeader) -> list[str]:
    datasets = header.value("imatrix.datasets")
    texts = [text.decode("utf-8", "replace") for text in datasets] if isinstance(datasets, list) else []
    chunks, size = header.value("imatrix.chunk_count"), header.value("imatrix.chunk_size")
    entries = sum(slot.name.endswith(".in_sum2") for slot in header.tensors)
    over = f" over {chunks} chunks of {size} tokens" if chunks else ""
    return [f"{entries} tensors' statistics{over} of {', '.join(texts) or 'an unnamed text'}"]
