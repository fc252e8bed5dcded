"""The projector of a checkpoint that sees images (mmproj): its GGUF, beside the text model's, from headers alone.

Types as in llama.cpp's converter (conversion/base.py, prepare_tensors and MmprojModel).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.checkpoint import Checkpoint
from quantkit.checkpoint.jsonfile import read_hints
from quantkit.errors import CheckpointError, UsageError
from quantkit.families import Family, MappedTensor, Projector, find_family, map_projector, read_mapped
from quantkit.families.base.projector import Sources, Tower
from quantkit.gguf.file_types import FileType, file_type
from quantkit.gguf.layout import lay_out
from quantkit.gguf.metadata import general_keys, plain_key, quantization_keys
from quantkit.gguf.mix import Choice
from quantkit.gguf.projector_file import ARCHITECTURE, PREFIX
from quantkit.gguf.types import block_size
from quantkit.outputs.gguf_files import GgufOutput, GgufPlan, GgufRequest
from quantkit.outputs.model import Model, describe, mix_model, origin_of, weight_files_of
from quantkit.outputs.pass_memory import fit_memory

TYPES = ("f16", "bf16", "q8_0")
_PATCHES = (".patch_embd.weight", ".patch_merger.weight")
_POSITIONS = "position_embd.weight"
_F32, _F16 = GGMLQuantizationType.F32, GGMLQuantizationType.F16


@dataclass(frozen=True)
class ProjectorRequest:
    """Projectors to write, one for each type, named after `name`. `threads`: 0 for all cores; `max_ram` in bytes."""

    types: tuple[FileType, ...]
    folder: Path
    name: str
    threads: int = 0
    max_ram: int | None = None


def projector_types(names: Sequence[str]) -> tuple[FileType, ...]:
    """The types of --mmproj. Raises UsageError for another one."""
    for name in names:
        if name.lower() not in TYPES:
            raise UsageError(f"a projector has no type {name!r}; pass one of {', '.join(TYPES)} to --mmproj")
    return tuple(file_type(name) for name in dict.fromkeys(name.lower() for name in names))


def find_projector(config: Mapping[str, Any]) -> Projector | None:
    """The rules for the projector of a checkpoint with this config.json; None if its family has none.

    Raises UnsupportedError if no family has the architecture.
    """
    return find_projector_of(find_family(config), config)


def find_projector_of(family: Family, config: Mapping[str, Any]) -> Projector | None:
    """The same, if the family is known already."""
    names = config.get("architectures")
    name = str(names[0] if isinstance(names, list) and names else None)
    tower = config.get("vision_config")
    kind = str(tower.get("model_type") if isinstance(tower, Mapping) else None)
    return family.projectors.get((name, kind), family.projectors.get(name))


def plan_projectors(checkpoint: Checkpoint, request: ProjectorRequest) -> GgufPlan:
    """The files mmproj-NAME-TYPE.gguf: the type of every tensor and the place of every byte.

    Raises:
        UsageError: the memory is too small, or the family has no rules for a projector.
        CheckpointError: a tensor or a file of the image processor is missing, or a shape is at odds with config.json.
        UnsupportedError: llama.cpp does not run the tower.
    """
    rules = find_projector(checkpoint.config)
    if rules is None:
        raise UsageError(
            f"{checkpoint.name} has no projector that quantkit knows; leave --mmproj out, or pass a checkout of"
            " llama.cpp to --converter"
        )
    tower = rules.tower(_sources(checkpoint))
    model, shapes = _model(checkpoint, rules, tower, request.name)
    fixed = rules.fixed_types(tower)
    outputs = [_output(model, fixed, kind, shapes, request.folder) for kind in request.types]
    gguf_request = GgufRequest(
        types=request.types, folder=request.folder, threads=request.threads, max_ram=request.max_ram
    )
    threads, chunk, peak = fit_memory(model, [output.size for output in outputs], request.threads, request.max_ram)
    return GgufPlan(model, gguf_request, tuple(outputs), {}, threads, chunk, peak, ())


def _sources(checkpoint: Checkpoint) -> Sources:
    family = find_family(checkpoint.config)
    text = family.sizes(checkpoint.config, checkpoint.tensors)
    return Sources(checkpoint.config, _processor(checkpoint.folder), text, _token_ids(checkpoint.folder))


def _processor(folder: Path) -> dict[str, Any]:
    """The settings of the image processor, merged as the converter merges them."""
    merged: dict[str, Any] = {}
    for file, inner in (("preprocessor_config.json", "media_proc_cfg"), ("processor_config.json", "image_processor")):
        settings = read_hints(folder / file)
        nested = settings.get(inner)
        merged |= {**settings, **(nested if isinstance(nested, Mapping) else {})}
    return merged


def _token_ids(folder: Path) -> Callable[[str], int]:
    """The id of a token by its text. The function raises CheckpointError for a text that is not an added token."""

    def find(text: str) -> int:
        added = read_hints(folder / "tokenizer_config.json").get("added_tokens_decoder")
        for number, token in added.items() if isinstance(added, Mapping) else ():
            if isinstance(token, Mapping) and token.get("content") == text and str(number).isdecimal():
                return int(number)
        listed = read_hints(folder / "tokenizer.json").get("added_tokens")
        for token in listed if isinstance(listed, list) else ():
            if isinstance(token, Mapping) and token.get("content") == text and isinstance(token.get("id"), int):
                return int(token["id"])
        raise CheckpointError(
            f"tokenizer_config.json and tokenizer.json have no token {text}, which the projector needs; copy them from"
            " the original checkpoint"
        )

    return find


def _model(
    checkpoint: Checkpoint, rules: Projector, tower: Tower, name: str
) -> tuple[Model, dict[str, tuple[int, ...]]]:
    """The projector as an unquantized GGUF, and the shape of each tensor."""
    mapped = sorted(map_projector(rules, tower, checkpoint.tensors), key=lambda tensor: _place(checkpoint, tensor))
    by_name = {tensor.name: tensor for tensor in mapped}
    shapes = {tensor.name: tensor.shape for tensor in mapped}
    keys = general_keys(checkpoint.folder, checkpoint.name, ARCHITECTURE, list(shapes.items()), gguf.GGUFType.MMPROJ)
    own_keys = [plain_key(key.name, key.kind, key.value) for key in rules.all_keys(tower)]

    def read_rows(tensor: str, start: int, stop: int) -> NDArray[Any]:
        return read_mapped(checkpoint.read_rows, by_name[tensor], start, stop)

    model = Model(
        name=f"{PREFIX}-{name}",
        keys=(*keys, *own_keys),
        tensors=tuple(describe(tensor, checkpoint) for tensor in mapped),
        sizes=mix_model(ARCHITECTURE, {}),
        read_rows=read_rows,
        origin=origin_of(checkpoint),
        family=rules.name,
        weight_files=weight_files_of(checkpoint),
    )
    return model, shapes


def _place(checkpoint: Checkpoint, tensor: MappedTensor) -> tuple[str, str]:
    """The converter goes through the files in order, and through each by name; the sort keeps the order of rules."""
    source = tensor.parts[0].source
    return checkpoint.tensors[source].file, source


def _output(
    model: Model, fixed: Mapping[str, str], kind: FileType, shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> GgufOutput:
    choices = tuple(_choose(name, shape, kind, fixed.get(name)) for name, shape in shapes.items())
    version, ftype = quantization_keys(kind.ftype)
    general = [key for key in model.keys if key.key.startswith("general.")]
    keys = [*general, ftype, *model.keys[len(general) :], version]
    stem = f"{model.name}-{kind.label}"
    tensors = [(choice.name, shapes[choice.name], choice.type) for choice in choices]
    files = lay_out(stem, keys, tensors, keep_dims=True)
    return GgufOutput(kind, folder, stem, choices, tuple(files), projector=True)


def _choose(name: str, shape: tuple[int, ...], kind: FileType, fixed: str | None) -> Choice:
    """The type of a tensor in a file of type `kind`."""
    requested = kind.tensor_type
    if len(shape) < 2 or name.endswith("_norm.weight"):
        chosen = _F32
    elif fixed is not None:
        chosen = GGMLQuantizationType[fixed.upper()]
    elif any(part in name for part in _PATCHES):
        chosen = _F16 if requested == _F16 else _F32
    elif name.endswith(_POSITIONS) or not name.endswith(".weight"):
        chosen = _F32
    else:
        # rows that do not divide into blocks stay in half precision
        chosen = requested if shape[-1] % block_size(requested)[0] == 0 else _F16
    return Choice(name, chosen, fallback=False, requires_imatrix=False)
