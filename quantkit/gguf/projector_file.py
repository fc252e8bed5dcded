"""Files of projectors (mmproj): which files are projectors, which one belongs to a model, whether it fits.

llama.cpp's converter names them mmproj-NAME-TYPE.gguf, and so does quantkit.
"""

from pathlib import Path

from quantkit.errors import UsageError
from quantkit.gguf.projector_match import KIND, check_fit, doubt
from quantkit.gguf.reader import GgufHeader, read_header

PREFIX = "mmproj"
ARCHITECTURE = "clip"
"""general.architecture of a projector's file."""
_BEST_FIRST = ("f16", "bf16", "q8_0", "f32")


def is_projector(header: GgufHeader) -> bool:
    """Whether the file is a projector, not a model."""
    kind, architecture = header.value("general.type"), header.value("general.architecture")
    return bool(kind == KIND or architecture == ARCHITECTURE)


def hears(header: GgufHeader) -> bool:
    """Whether a projector is of a model that hears audio."""
    return bool(header.value("clip.has_audio_encoder"))


def only_hears(header: GgufHeader) -> bool:
    """Whether a projector is of a model that hears audio and does not see."""
    return hears(header) and not header.value("clip.has_vision_encoder")


def named_projectors(model: Path) -> list[Path]:
    """The projectors in the folder of `model` that belong to it by name, the best type first.

    A name belongs if the model's name begins with it, without mmproj and the type; "mmproj-F16.gguf" belongs to all.
    """
    return sorted((path for path in _projectors(model) if _belongs(path, model)), key=_rank)


def projectors_beside(model: Path) -> list[Path]:
    """The same; without one that belongs by name, the only projector of the folder."""
    files = _projectors(model)
    return named_projectors(model) or (files if len(files) == 1 else [])


def _projectors(model: Path) -> list[Path]:
    return sorted(path for path in model.parent.glob(f"*{PREFIX}*.gguf") if path != model)


def _belongs(projector: Path, model: Path) -> bool:
    name = projector.stem.lower()
    kind = next((f"-{kind}" for kind in _BEST_FIRST if name.endswith(f"-{kind}")), "")
    name = name.removesuffix(kind)
    if not name.startswith(PREFIX) and not name.endswith(PREFIX):
        return False
    return model.stem.lower().startswith(name.removeprefix(PREFIX).removesuffix(PREFIX).strip("-"))


def _rank(path: Path) -> tuple[int, str]:
    name = path.stem.lower()
    ranks = (rank for rank, kind in enumerate(_BEST_FIRST) if name.endswith(f"-{kind}"))
    return next(ranks, len(_BEST_FIRST)), name


def choose_projector(model: Path, projector: Path | None) -> Path:
    """The projector to load with `model`: the given file, or the one beside it.

    Raises:
        UsageError: none lies beside the model, or several do and none has its name; the file is not a projector, or
            belongs to another model.
        CheckpointError: the file is not a sound GGUF.
    """
    path = projector
    if path is None:
        projectors = projectors_beside(model)
        if not projectors:
            others = sorted(file.name for file in model.parent.glob(f"*{PREFIX}*.gguf"))
            if others:
                raise UsageError(
                    f"{len(others)} projectors lie beside {model.name}, but none has its name ({', '.join(others)});"
                    " pass one with --mmproj FILE"
                )
            raise UsageError(
                f"no projector (mmproj-*.gguf) lies beside {model.name}; pass one with --mmproj FILE, or write one with"
                " quantkit gguf SOURCE --mmproj f16"
            )
        path = projectors[0]
    header = read_header(path)
    if not is_projector(header):
        raise UsageError(f"{path.name} is not a projector but a model; pass a file mmproj-*.gguf to --mmproj")
    check_fit(read_header(model), header)
    return path


def doubt_of(model: Path, projector: Path) -> str | None:
    """Why a projector that `choose_projector` accepts may belong to another model, as a sentence; None if nothing does.

    Raises CheckpointError: a file is not a sound GGUF.
    """
    return doubt(read_header(model), read_header(projector))
