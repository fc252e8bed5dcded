"""The source of a plan, read from headers alone: a hub id, a folder, a lone config.json, or a GGUF."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Access
from quantkit.checkpoint.checkpoint import Checkpoint, Origin, WeightFiles
from quantkit.checkpoint.folder import parse_config, read_small_file
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.errors import CheckpointError, TokenizerError
from quantkit.families import Family, Hyperparameters, complete_architecture, find_family, open_model
from quantkit.families.base.family import Rule
from quantkit.files import user_path
from quantkit.gguf.layout import padded
from quantkit.gguf.model_file import model_file
from quantkit.outputs.gguf_source import model_from_gguf
from quantkit.outputs.model import Model, model_from_checkpoint
from quantkit.planning.planned_tensors import PlannedTensor, PlannedTensors
from quantkit.planning.shape import ModelShape, model_shape
from quantkit.tokenizer import Vocabulary
from quantkit.tokenizer.rwkv_world import FILE_NAME as RWKV_WORLD

_LARGE_TOKENIZER = 4 << 20
"""Bytes of a tokenizer.json above which its library would take too much memory for a plan."""
_PIECE = 1 << 18
_ENTRY = re.compile(rb'"((?:[^"\\]|\\.)*)"\s*:\s*\d')
_MERGE = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "qwen.tiktoken", RWKV_WORLD)


@dataclass(frozen=True)
class Source:
    """The model to plan for. `exact`: file sizes are exact to the byte; `notes` give the reasons if not, and limits.

    `vocabulary`: estimated bytes of the vocabulary in a GGUF if the model has a placeholder for it; else 0.
    """

    model: Model
    shape: ModelShape
    exact: bool
    notes: tuple[str, ...] = ()
    vocabulary: int = 0

    @property
    def is_gguf(self) -> bool:
        """Whether the source is a GGUF file."""
        return self.model.checkpoint is None

    @property
    def is_config(self) -> bool:
        """Whether the source is a lone config.json, which cannot be converted."""
        return self.model.checkpoint is not None and not self.model.checkpoint.header_sha256


def source_path(source: str) -> str:
    """`source`, or the file of its only model if it is a folder of GGUF files.

    Raises CheckpointError if the folder holds several models, or a damaged one.
    """
    path = user_path(source)
    is_outputs = path.is_dir() and not (path / "config.json").is_file() and any(path.glob("*.gguf"))
    return str(model_file(path)) if is_outputs else source


def open_source(source: str, *, offline: bool = False) -> Source:
    """Open a source from headers alone; no weights are read or downloaded.

    `source`: a hub id, a checkpoint folder, a folder that has a config.json and no weights, a config.json, or a GGUF.

    Raises:
        CheckpointError, UnsupportedError: the source is not found, damaged, or of an unknown family.
    """
    path = user_path(source)
    if source.endswith(".gguf") and not path.is_dir():
        if not path.is_file():
            raise CheckpointError(f"{source} not found; check the name")
        return _planned(model_from_gguf(path), exact=True)
    if path.is_file() and path.suffix == ".json":
        return _from_config(path)
    if path.is_dir() and (path / "config.json").is_file() and not _has_weights(path):
        return _from_config(path / "config.json")
    return _from_checkpoint(open_model(source, Access(offline, headers_only=True), any_architecture=True))


def _planned(model: Model, *, exact: bool, notes: tuple[str, ...] = (), vocabulary: int = 0) -> Source:
    keys: dict[str, Any] = {key.key: key.value for key in model.keys}
    shape = model_shape(keys, [(tensor.name, tensor.shape) for tensor in model.tensors], model.name)
    repairs = model.checkpoint.notes if model.checkpoint else ()
    return Source(model, shape, exact, (*repairs, *notes), vocabulary)


def tensors_as_they_are(model: Model) -> PlannedTensors:
    """The tensors of a GGUF in their stored types."""
    return PlannedTensors(PlannedTensor(tensor.name, tensor.shape, tensor.type) for tensor in model.tensors)


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")) or any(folder.glob("*.gguf"))


def _from_checkpoint(checkpoint: Checkpoint) -> Source:
    files = [checkpoint.folder / name for name in _TOKENIZERS]
    small = all(not file.is_file() or file.stat().st_size <= _LARGE_TOKENIZER for file in files)
    if small and any(file.is_file() for file in files):
        try:
            return _planned(model_from_checkpoint(checkpoint), exact=True)
        except TokenizerError as error:
            return _with_stand_in(checkpoint, f"its tokenizer cannot be converted: {error}")
    if small:
        return _with_stand_in(checkpoint, "it has no tokenizer; real files are larger by the vocabulary, a few MB")
    return _with_stand_in(
        checkpoint, "its vocabulary is large, so its size is estimated; file sizes are off by a few kB"
    )


def _with_stand_in(checkpoint: Checkpoint, *notes: str) -> Source:
    """A checkpoint with an estimated vocabulary; file sizes are right to a few kilobytes."""
    estimate = padded(_vocabulary_bytes(checkpoint.folder))
    return _planned(_without_vocabulary(checkpoint), exact=False, notes=notes, vocabulary=estimate)


def _without_vocabulary(checkpoint: Checkpoint) -> Model:
    """The model without its vocabulary."""
    n_vocab = find_family(checkpoint.config).sizes(checkpoint.config).vocab
    return model_from_checkpoint(checkpoint, vocabulary=Vocabulary("", "", [b""] * n_vocab, [], [], None))


def _vocabulary_bytes(folder: Path) -> int:
    """Estimated bytes of the vocabulary in a GGUF: texts, token types and merges.

    The strings of a tokenizer.json are counted without parsing it, because a parsed large one takes 60 MB.
    """
    try:
        text = (folder / "tokenizer.json").read_bytes()
    except OSError:
        return sum((folder / name).stat().st_size for name in _TOKENIZERS if (folder / name).is_file())
    merges = text.rfind(b'"merges"')
    split = merges if merges >= 0 else len(text)
    size = 2048 + _string_bytes(_ENTRY, text, 0, split, 8 + 4)
    if merges >= 0:
        start = split + len(b'"merges"')
        # a merge is "a b" or, in newer files, ["a", "b"], which lacks the space
        in_pairs = text[start : start + 64].count(b"[") > 1
        size += _string_bytes(_MERGE, text, start, len(text), 4.5 if in_pairs else 8)
    return size


def _string_bytes(pattern: re.Pattern[bytes], text: bytes, start: int, stop: int, overhead: float) -> int:
    """Bytes of all matches of `pattern` without backslashes, plus `overhead` bytes per match."""
    size = 0.0
    while start < stop:
        # one piece at a time limits memory; a piece ends at a comma between two strings
        comma = text.find(b'",', start + _PIECE, stop)
        end = stop if comma < 0 else comma + 2
        texts = pattern.findall(text, start, end)
        joined = b"".join(texts)
        size += len(joined) - joined.count(b"\\") + overhead * len(texts)
        start = end
    return int(size)


def _from_config(path: Path) -> Source:
    """A model without weights: the family's rules and config.json give the tensors."""
    folder = path.parent
    data = read_small_file(folder, path.name, str(path))
    config = dict(complete_architecture(parse_config(data, str(path.parent))))
    family = find_family(config)
    sizes = family.sizes(config)
    dtype = {"float32": "F32", "float16": "F16"}.get(str(config.get("torch_dtype") or config.get("dtype")), "BF16")
    tensors = {}
    for name, shape in _ruled(family, sizes):
        width = 4 if dtype == "F32" else 2
        tensors[name] = TensorInfo(name, dtype, shape, "model.safetensors", 0, width * prod(shape))
    name = folder.resolve().name if path.name == "config.json" else path.stem
    origin = Origin(name, str(path), folder)
    checkpoint = Checkpoint(origin, config, WeightFiles(tensors, {}))
    note = "sizes come from config.json alone; the vocabulary and optional tensors such as biases are not counted"
    return _planned(
        _without_vocabulary(checkpoint), exact=False, notes=(note,), vocabulary=padded(_vocabulary_bytes(folder))
    )


def _ruled(family: Family, sizes: Hyperparameters) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that every checkpoint of these sizes has."""
    yielded: set[tuple[str, int | None]] = set()
    for rule in family.rules:
        if (rule.when and not rule.when(sizes)) or rule.scales or not _is_there(rule, sizes):
            continue
        for layer in _layers(rule, sizes):
            if (rule.target, layer) in yielded:
                continue
            yielded.add((rule.target, layer))
            shape = tuple(family.dimension(sizes, name, layer) for name in rule.shape)
            draft = None if layer is None else layer - sizes.n_layer
            for expert in range(sizes.n_expert) if "{expert}" in rule.source else (None,):
                for part in rule.parts or (None,):
                    yield rule.source.format(layer=layer, draft=draft, expert=expert, part=part), shape


def _is_there(rule: Rule, sizes: Hyperparameters) -> bool:
    return rule.required or (rule.tied_to_embedding and not sizes.tied)


def _layers(rule: Rule, sizes: Hyperparameters) -> Iterator[int | None]:
    if rule.draft:
        yield from range(sizes.n_layer, sizes.n_layer + sizes.n_draft)
    elif "{layer}" not in rule.source:
        yield None
    else:
        yield from rule.layers(sizes) if rule.layers else range(sizes.n_layer)
