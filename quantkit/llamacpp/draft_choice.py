"""What --draft names: a smaller model of the same vocabulary, or the layer for later tokens (MTP) of a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError
from quantkit.gguf.reader import GgufHeader, read_header
from quantkit.gguf.vocabulary import special_tokens

MTP = "mtp"
DRAFTED = 3
"""Tokens drafted at a time; llama.cpp's default."""
_PADDING = 128
"""Source: SPEC_VOCAB_MAX_SIZE_DIFFERENCE of common/speculative.cpp."""


@dataclass(frozen=True)
class Draft:
    """Where drafts come from. `model` None: the layer of the model itself. `count`: tokens drafted at a time.

    `mtp`: an MTP layer drafts, not a whole model. `gpu`: the number of the GPU that has a file of its own; None for the
    CPU. `device`: its name in llama.cpp.
    """

    model: Path | None
    mtp: bool
    count: int = DRAFTED
    gpu: int | None = None
    device: str = ""

    def request(self) -> dict[str, Any]:
        """The part of a request to the child process."""
        return {
            "model": str(self.model.absolute()) if self.model else None,
            "mtp": self.mtp,
            "count": self.count,
            "gpu": self.gpu,
        }


def choose_draft(model: Path, name: str, count: int) -> Draft:
    """The draft that --draft names for `model`: `mtp`, or a GGUF file.

    Raises:
        UsageError: the model has no MTP layer, or the draft model has another vocabulary.
        CheckpointError: a file is not a GGUF.
    """
    target = read_header(model)
    if name.lower() == MTP:
        if not _mtp_layers(target):
            raise UsageError(f"--draft mtp: {model.name} has no MTP layer; pass the file of a smaller model instead")
        return Draft(None, mtp=True, count=count)
    path = Path(name)
    draft = read_header(path)
    if _mtp_layers(draft) and not any(tensor.name.startswith("blk.0.") for tensor in draft.tensors):
        if _size(draft) != _size(target):
            raise UsageError(f"--draft {name} is the MTP layer of another model than {model.name}")
        return Draft(path, mtp=True, count=count)
    theirs, ours = _texts(draft), _texts(target)
    shared = min(len(theirs), len(ours))
    same_ends = {role: id_ for role, id_, _ in special_tokens(draft.keys)} == {
        role: id_ for role, id_, _ in special_tokens(target.keys)
    }
    if theirs[:shared] != ours[:shared] or abs(len(theirs) - len(ours)) > _PADDING or not same_ends:
        raise UsageError(
            f"--draft {name} has another vocabulary than {model.name}; pass a smaller model of the same family"
        )
    return Draft(path, mtp=False, count=count)


def _mtp_layers(header: GgufHeader) -> int:
    return int(header.value(f"{header.value('general.architecture')}.nextn_predict_layers") or 0)


def _size(header: GgufHeader) -> tuple[Any, Any]:
    arch = header.value("general.architecture")
    return arch, header.value(f"{arch}.embedding_length")


def _texts(header: GgufHeader) -> list[Any]:
    return list(header.value("tokenizer.ggml.tokens") or [])
