"""What to plan for, from headers alone: a hub id, a folder, a config.json by itself, or a GGUF."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from quantkit.checkpoint.checkpoint import Checkpoint, Origin, WeightFiles
from quantkit.checkpoint.folder import parse_config, read_small_file
from quantkit.checkpoint.sources import open_checkpoint
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.errors import CheckpointError, TokenizerError
from quantkit.families import Family, Hyperparameters, complete_architecture, find_family
from quantkit.families.base.family import Rule
from quantkit.gguf.layout import padded
from quantkit.outputs.model import Model, model_from_checkpoint, model_from_gguf
from quantkit.planning.memory import PlannedTensor
from quantkit.planning.shape import ModelShape, model_shape
from quantkit.tokenizer import Vocabulary

_LARGE_TOKENIZER = 4 << 20
"""Bytes of a tokenizer.json from which its own library takes more memory than a plan should."""
_PIECE = 1 << 18
_ENTRY = re.compile(rb'"((?:[^"\\]|\\.)*)"\s*:\s*\d')
_MERGE = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "qwen.tiktoken")


@dataclass(frozen=True)
class Source:
    """The model to plan for. `exact`: file sizes are exact to the byte; `notes` say why not, and other limits.

    `vocabulary`: bytes by which a GGUF is larger than the model's keys tell, where the vocabulary was only weighed.
    """

    model: Model
    shape: ModelShape
    exact: bool
    notes: tuple[str, ...] = ()
    vocabulary: int = 0

    @property
    def is_gguf(self) -> bool:
        return self.model.checkpoint is None

    @property
    def is_config(self) -> bool:
        """Whether there is a config.json and nothing else, so that nothing can be converted."""
        return self.model.checkpoint is not None and not self.model.checkpoint.header_sha256


def open_source(source: str, *, offline: bool = False) -> Source:
    """Open a source from headers alone; no weights are read or downloaded.

    `source`: a hub id, a checkpoint folder, a folder that has a config.json and no weights, a config.json, or a GGUF.

    Raises:
        CheckpointError, UnsupportedError: there is no such thing, it is damaged, or its family is not known.
    """
    path = Path(source).expanduser()
    if source.endswith(".gguf") and not path.is_dir():
        if not path.is_file():
            raise CheckpointError(f"there is no file {source}; check the name")
        return _planned(model_from_gguf(path), exact=True)
    if path.is_file() and path.suffix == ".json":
        return _from_config(path)
    if path.is_dir() and not (path / "config.json").is_file() and (files := sorted(path.glob("*.gguf"))):
        raise CheckpointError(f"{source} is a folder of GGUF files; name the one to plan for, such as {files[0]}")
    if path.is_dir() and (path / "config.json").is_file() and not _has_weights(path):
        return _from_config(path / "config.json")
    return _from_checkpoint(open_checkpoint(source, offline=offline, headers_only=True, judge=complete_architecture))


def _planned(model: Model, *, exact: bool, notes: tuple[str, ...] = (), vocabulary: int = 0) -> Source:
    keys: dict[str, Any] = {key.key: key.value for key in model.keys}
    shape = model_shape(keys, [(tensor.name, tensor.shape) for tensor in model.tensors], model.name)
    repairs = model.checkpoint.notes if model.checkpoint else ()
    return Source(model, shape, exact, (*repairs, *notes), vocabulary)


def tensors_as_they_are(model: Model) -> tuple[PlannedTensor, ...]:
    """The tensors of a GGUF in the types they have."""
    return tuple(PlannedTensor(tensor.name, tensor.shape, tensor.type) for tensor in model.tensors)


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")) or any(folder.glob("*.gguf"))


def _from_checkpoint(checkpoint: Checkpoint) -> Source:
    files = [checkpoint.folder / name for name in _TOKENIZERS]
    small = all(not file.is_file() or file.stat().st_size <= _LARGE_TOKENIZER for file in files)
    if small and any(file.is_file() for file in files):
        try:
            return _planned(model_from_checkpoint(checkpoint), exact=True)
        except TokenizerError as error:
            return _with_stand_in(checkpoint, f"its tokenizer cannot be converted as it is: {error}")
    if small:
        return _with_stand_in(checkpoint, "it has no tokenizer; files are larger by the vocabulary, a few MB")
    return _with_stand_in(
        checkpoint, "its vocabulary is large and was weighed, not converted: sizes are off by a few kB"
    )


def _with_stand_in(checkpoint: Checkpoint, *notes: str) -> Source:
    """A checkpoint whose vocabulary is estimated, not converted: file sizes are right to a few kilobytes."""
    weight = padded(_vocabulary_bytes(checkpoint.folder))
    return _planned(_weighed(checkpoint), exact=False, notes=notes, vocabulary=weight)


def _weighed(checkpoint: Checkpoint) -> Model:
    """The model without its vocabulary."""
    n_vocab = find_family(checkpoint.config).sizes(checkpoint.config).vocab
    return model_from_checkpoint(checkpoint, vocabulary=Vocabulary("", "", [b""] * n_vocab, [], [], None))


def _vocabulary_bytes(folder: Path) -> int:
    """About how many bytes the vocabulary takes in a GGUF: texts, kinds, and merges.

    Of a tokenizer.json the strings are counted where they stand: parsed, a large one takes 60 MB.
    """
    try:
        text = (folder / "tokenizer.json").read_bytes()
    except OSError:
        return sum((folder / name).stat().st_size for name in _TOKENIZERS if (folder / name).is_file())
    merges = text.rfind(b'"merges"')
    split = merges if merges >= 0 else len(text)
    size = 2048 + _weight(_ENTRY, text, 0, split, 8 + 4)
    if merges >= 0:
        start = split + len(b'"merges"')
        # a merge stands as "a b" or, in newer files, as ["a", "b"], where the space between is not said
        in_pairs = text[start : start + 64].count(b"[") > 1
        size += _weight(_MERGE, text, start, len(text), 4.5 if in_pairs else 8)
    return size


def _weight(pattern: re.Pattern[bytes], text: bytes, start: int, stop: int, each: float) -> int:
    """Bytes of the texts that `pattern` finds, backslashes not counted, and `each` more for every one."""
    size = 0.0
    while start < stop:
        # a piece at a time, so that few texts are in memory; a comma between two of them ends it
        comma = text.find(b'",', start + _PIECE, stop)
        end = stop if comma < 0 else comma + 2
        texts = pattern.findall(text, start, end)
        joined = b"".join(texts)
        size += len(joined) - joined.count(b"\\") + each * len(texts)
        start = end
    return int(size)


def _from_config(path: Path) -> Source:
    """A model with a config.json and no weights: its family's rules give the tensors."""
    folder = path.parent
    config = dict(complete_architecture(parse_config(read_small_file(folder, path.name, str(path)), str(path))))
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
    note = "from its config.json alone: the vocabulary and what not every model of the family has (biases) are left out"
    return _planned(_weighed(checkpoint), exact=False, notes=(note,), vocabulary=padded(_vocabulary_bytes(folder)))


def _ruled(family: Family, sizes: Hyperparameters) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that every checkpoint of these sizes has."""
    yielded: set[tuple[str, int | None]] = set()
    for rule in family.rules:
        if (rule.when and not rule.when(sizes)) or rule.scales or not _is_there(rule, sizes):
            continue
        shape = tuple(family.dimension(sizes, name) for name in rule.shape)
        for layer in _layers(rule, sizes):
            if (rule.target, layer) in yielded:
                continue
            yielded.add((rule.target, layer))
            for expert in range(sizes.n_expert) if "{expert}" in rule.source else (None,):
                yield rule.source.format(layer=layer, expert=expert), shape


def _is_there(rule: Rule, sizes: Hyperparameters) -> bool:
    return rule.required or (rule.tied_to_embedding and not sizes.tied)


def _layers(rule: Rule, sizes: Hyperparameters) -> Iterator[int | None]:
    if "{layer}" not in rule.source:
        yield None
    else:
        yield from rule.layers(sizes) if rule.layers else range(sizes.n_layer)
