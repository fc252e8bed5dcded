"""A Hugging Face checkpoint, in a folder or on the hub, described from config.json, tokenizer files and headers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Access, Checkpoint, TensorInfo
from quantkit.checkpoint.float4_blocks import packed_weights
from quantkit.checkpoint.folder import choose_weights, read_small_file
from quantkit.checkpoint.jsonfile import parse_object
from quantkit.checkpoint.quantized.settings import stated_quantization
from quantkit.checkpoint.weights import open_weights
from quantkit.errors import MissingExtraError, QuantkitError, UnsupportedError
from quantkit.families import Family, find_family, open_model, token_roles
from quantkit.gguf.keyvalues import KeyValue
from quantkit.inspection.config import shape_of_config, text_config
from quantkit.inspection.description import Description, File, Template, Vocabulary
from quantkit.inspection.keys import describe_template, template_of_keys, vocabulary_of_keys
from quantkit.inspection.quantization import bits_of, describe_quantization, is_packed, title_of
from quantkit.inspection.record import entry_of, readable_record
from quantkit.inspection.weights import Stored, count_weights
from quantkit.outputs.model import model_from_checkpoint
from quantkit.outputs.projector import find_projector_of
from quantkit.outputs.templates import fitting_templates
from quantkit.tokenizer import files as tokenizer_files
from quantkit.tokenizer import load_vocabulary, special


@dataclass
class _Contents:
    """The readable parts of a checkpoint."""

    name: str
    folder: Path
    config: dict[str, Any]
    tensors: list[TensorInfo]
    files: list[File]
    revision: str | None = None
    opened: Checkpoint | None = None
    notes: list[str] = field(default_factory=list)


def describe_checkpoint_folder(folder: Path, source: str) -> Description:
    """A checkpoint in a folder, quantized or not.

    Raises:
        CheckpointError: config.json or a weight file is missing or malformed.
    """
    config = parse_object(read_small_file(folder, "config.json", source), f"config.json of {source}")
    contents = _Contents(folder.resolve().name, folder, config, [], [])
    try:
        opened = open_model(str(folder), any_architecture=True)
    except QuantkitError as error:
        _read_headers(contents, source)
        contents.notes.append(str(error))
        return _describe(contents, source)
    with opened:
        contents.tensors = list(opened.tensors_in_files.values())
        contents.files = _files(folder, {tensor.file for tensor in contents.tensors})
        contents.opened, contents.name, contents.revision = opened, opened.name, opened.revision
        contents.config = opened.config
        contents.notes += opened.notes
        return _describe(contents, source)


def _read_headers(contents: _Contents, source: str) -> None:
    """The tensors and files of a checkpoint in a folder that cannot be opened as a model. Raises CheckpointError."""
    folder = contents.folder
    try:
        weights = open_weights(folder, source)
        weights.close()
        contents.tensors = list(weights.tensors.values())
        contents.files = _files(folder, {tensor.file for tensor in contents.tensors})
    except MissingExtraError as error:
        contents.notes.append(str(error))
        contents.files = _files(folder, choose_weights([path.name for path in folder.iterdir()], source).files)


def _files(folder: Path, names: Iterable[str]) -> list[File]:
    return [File(name, (folder / name).stat().st_size) for name in sorted(names)]


def describe_hub_checkpoint(source: str, *, offline: bool = False) -> Description:
    """A checkpoint on the hub; only the headers of its weights are fetched.

    Raises:
        CheckpointError, HubError, UnsupportedError: as `open_model` does.
    """
    with open_model(source, Access(offline, headers_only=True), any_architecture=True) as opened:
        tensors = list(opened.stored_tensors.values())
        names = sorted({tensor.file for tensor in tensors})
        files = [File(name, sum(tensor.nbytes for tensor in tensors if tensor.file == name)) for name in names]
        notes = list(opened.notes)
        contents = _Contents(opened.name, opened.folder, opened.config, tensors, files, opened.revision, opened, notes)
        return _describe(contents, source)


def _describe(contents: _Contents, source: str) -> Description:
    config = contents.config
    packing = stated_quantization(config)
    quantized = contents.opened.quantized if contents.opened is not None else None
    architecture = _architecture(config)
    family = _family(config)
    completed = _completed(config, family)
    shape = shape_of_config(completed)
    weights = count_weights(
        (Stored(tensor.name, tensor.dtype, tensor.n_params, tensor.nbytes) for tensor in contents.tensors),
        experts=shape.experts,
        experts_used=shape.experts_used,
        tied=text_config(completed).get("tie_word_embeddings") is True,
        packed_bits=bits_of(packing),
        counts=quantized.weights_of if quantized is not None else packed_weights(contents.tensors),
    )
    keys, why_not = _gguf_keys(contents, family, architecture)
    vocabulary = vocabulary_of_keys(keys)
    template = template_of_keys(keys, vocabulary)
    if vocabulary is None:
        template = _template_file(contents.folder)
        vocabulary = Vocabulary(size=shape.vocab) if shape.vocab else None
    suggested = None
    if template is None:
        fitting = fitting_templates(keys, contents.folder, contents.name)
        if len(fitting) == 1:
            suggested = f"the built-in '{fitting[0].template.name}' fits (its {fitting[0].evidence})"
    stored = weights.groups[0].type.lower() if weights else None
    return Description(
        name=contents.name,
        kind="quantized checkpoint" if is_packed(packing) else "checkpoint",
        source=source,
        family=family.models if family else None,
        architecture=architecture,
        shape=shape,
        weights=weights,
        files=tuple(contents.files),
        vocabulary=vocabulary,
        template=template,
        suggested_template=suggested,
        type=title_of(packing, quantized) or stored,
        convertible=why_not is None,
        why_not=why_not,
        revision=contents.revision,
        origin=_origin(contents),
        quantization=describe_quantization(packing, quantized, contents.tensors),
        notes=tuple(dict.fromkeys((*(note for note in contents.notes if note != why_not), *_sight(config, family)))),
    )


def _sight(config: Mapping[str, Any], family: Family | None) -> list[str]:
    """How a model that sees or hears gets its projector."""
    rules = find_projector_of(family, config) if family is not None else None
    if not isinstance(config.get("vision_config"), Mapping) and rules is None:
        return []
    does = "hears audio" if rules is not None and rules.hears else "sees images"
    how = "quantkit gguf --mmproj f16 writes its projector"
    by = "" if rules is not None else " with --converter, by llama.cpp's converter"
    return [f"it {does}; {how}{by}"]


def _gguf_keys(
    contents: _Contents, family: Family | None, architecture: str | None
) -> tuple[list[KeyValue], str | None]:
    """The keys of its GGUF; if it cannot be converted, the keys of its vocabulary and the reason."""
    why_not = None
    if family is None:
        why_not = "config.json names no architecture"
        if contents.config.get("architectures"):
            why_not = f"architecture {architecture} is not supported yet"
    elif contents.opened is None:
        why_not = contents.notes[-1]
    else:
        try:
            model = model_from_checkpoint(contents.opened)
            contents.notes += model.warnings
            return list(model.keys), None
        except QuantkitError as error:
            why_not = str(error)
    try:
        config = text_config(contents.config)
        return load_vocabulary(contents.folder, config, roles=token_roles(config)).keys, why_not
    except QuantkitError as error:
        contents.notes.append(str(error))
        return [], why_not


def _template_file(folder: Path) -> Template | None:
    """The template of a tokenizer whose vocabulary cannot be read."""
    try:
        files = tokenizer_files.read(folder)
    except QuantkitError:
        return None
    text = special.default_template(files.template)
    return describe_template(text, None) if text else None


def _origin(contents: _Contents) -> Mapping[str, Any] | None:
    """The record's entry of these weight files, else the whole record."""
    record, faults = readable_record(contents.folder)
    contents.notes += faults
    entry = entry_of(record, Path(contents.files[0].name)) if contents.files else None
    return entry or record or None


def _architecture(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else config.get("model_type")
    return name if isinstance(name, str) else None


def _family(config: Mapping[str, Any]) -> Family | None:
    try:
        return find_family(config)
    except UnsupportedError:
        return None


def _completed(config: Mapping[str, Any], family: Family | None) -> Mapping[str, Any]:
    """config.json with the family's defaults, even if the family refuses the config."""
    if family is None:
        return config
    try:
        return family.complete(config)
    except QuantkitError:
        return {**family.defaults.get(str(config.get("model_type")), {}), **config}
