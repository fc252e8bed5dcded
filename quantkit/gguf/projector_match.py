"""Whether a projector belongs to a text model: the vectors' width, the kinds that go together, tokens and names.

llama.cpp compares the widths only. The kinds are those of its converter (conversion/, release b11549): each class of
MmprojModel, and the architecture that it writes for the text model of the same checkpoint.
"""

import re
from collections.abc import Mapping

import gguf
import numpy as np

from quantkit.errors import UsageError
from quantkit.gguf.reader import GgufHeader
from quantkit.gguf.vocabulary import token_texts

KIND = "mmproj"
"""general.type of a projector's file."""
_DEEPSTACK = "clip.vision.is_deepstack_layers"
_KINDS = ("clip.projector_type", "clip.vision.projector_type", "clip.audio.projector_type")
_QWEN2 = ("qwen2vl", "llama")

TEXT_ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "qwen2vl_merger": _QWEN2,
    "qwen2.5vl_merger": _QWEN2,
    "qwen2.5o": _QWEN2,
    "qwen3vl_merger": ("qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen4exp"),
    "qwen3a": ("qwen3vl", "qwen3vlmoe"),
    "minicpmv4_6": ("qwen35",),
    "gemma3": ("gemma3",),
    "gemma3nv": ("gemma3n",),
    "gemma3na": ("gemma3n",),
    "gemma4v": ("gemma4",),
    "gemma4a": ("gemma4",),
    "gemma4uv": ("gemma4",),
    "gemma4ua": ("gemma4",),
    "llama4": ("llama4",),
    "cogvlm": ("cogvlm",),
    "glm4v": ("glm4", "glm4moe"),
    "exaone4_5": ("exaone4",),
    "voxtral": ("llama",),
    "janus_pro": ("llama",),
    "qwen2a": ("qwen2", "qwen2vl"),
    "musicflamingo": ("qwen2",),
    "dots_ocr": ("qwen2",),
    "phi4": ("phi3",),
}
"""By kind of projector, the architectures of its text models."""
FREE_KINDS = (
    "mlp",
    "ldp",
    "ldpv2",
    "resampler",
    "adapter",
    "internvl",
    "idefics3",
    "pixtral",
    "ultravox",
    "lightonocr",
)
"""Kinds that lead into text models of several architectures, but into none of OWN_ARCHITECTURES."""
OWN_ARCHITECTURES = ("qwen2vl", "qwen3vl", "qwen3vlmoe", "gemma3n", "gemma4", "llama4", "cogvlm")
"""Architectures whose models see or hear through kinds of their own only."""
_TOKENS: Mapping[str, str] = {
    **dict.fromkeys(("qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger"), "<|vision_start|>"),
    **dict.fromkeys(("gemma3", "gemma3nv"), "<start_of_image>"),
    **dict.fromkeys(("gemma4v", "gemma4uv"), "<|image>"),
    "internvl": "<img>",
    "idefics3": "<fake_token_around_image>",
    "pixtral": "[IMG_END]",
    "llama4": "<|image_start|>",
    "glm4v": "<|begin_of_image|>",
    "qwen2a": "<|audio_bos|>",
    "qwen3a": "<|audio_start|>",
    "voxtral": "[BEGIN_AUDIO]",
    "musicflamingo": "<sound>",
}
"""By kind, a token that llama.cpp puts around an image or a sound (mtmd_context::init_vision and init_audio)."""


def check_fit(model: GgufHeader, projector: GgufHeader) -> None:
    """Raise UsageError if the projector gives vectors of another width than the model takes, or leads into others.

    The vectors of DeepStack follow each vector. Files of older converters state another number as their width;
    llama.cpp checks those when it loads them.
    """
    architecture = model.value("general.architecture")
    width = model.value(f"{architecture}.embedding_length")
    projected_width = projector.value("clip.vision.projection_dim") or projector.value("clip.audio.projection_dim")
    if isinstance(width, int) and isinstance(projected_width, int):
        layers, flags = model.value(f"{architecture}.n_deepstack_layers"), projector.value(_DEEPSTACK)
        width *= 1 + (layers if isinstance(layers, int) else 0)
        projected_width *= 1 + (0 if flags is None else int(np.count_nonzero(flags)))
    wrong = f"{projector.path.name} belongs to another model"
    if projector.value("general.type") == KIND and None not in (width, projected_width) and width != projected_width:
        raise UsageError(
            f"{wrong}: it gives vectors of {projected_width} values, but {model.path.name} takes {width}; pass the"
            " projector of this model with --mmproj FILE"
        )
    for kind in kinds_of(projector):
        if not may_serve(kind, str(architecture)):
            raise UsageError(
                f"{wrong}: its kind {kind} does not lead into a {architecture} model like {model.path.name}; pass the"
                " projector of this model with --mmproj FILE"
            )


def kinds_of(projector: GgufHeader) -> list[str]:
    """The kinds of the projectors in a file: one that sees, one that hears, or both."""
    kinds = (projector.value(key) for key in _KINDS)
    return list(dict.fromkeys(kind for kind in kinds if isinstance(kind, str)))


def may_serve(kind: str, architecture: str) -> bool:
    """Whether llama.cpp's converter can have written both files from one checkpoint; True if either is not known."""
    if kind in TEXT_ARCHITECTURES:
        known = {*gguf.MODEL_ARCH_NAMES.values(), *OWN_ARCHITECTURES}
        return architecture in TEXT_ARCHITECTURES[kind] or architecture not in known
    return kind not in FREE_KINDS or architecture not in OWN_ARCHITECTURES


def doubt(model: GgufHeader, projector: GgufHeader) -> str | None:
    """Why a projector that fits may belong to another model, as a sentence; None if nothing says so.

    The vocabulary lacks the token that begins an image, or the files state other names: a projector of Qwen2-VL fits a
    text model of Qwen2.5-VL with the same width.
    """
    advice = "if the answers do not fit, pass the projector of this model with --mmproj FILE"
    names = [_basename(header) for header in (model, projector)]
    if None not in names and _letters(str(names[0])) != _letters(str(names[1])):
        return f"{projector.path.name} states that it is of {names[1]}, but {model.path.name} of {names[0]}; {advice}"
    vocabulary = set(token_texts(model.keys))
    needed = (_TOKENS[kind] for kind in kinds_of(projector) if kind in _TOKENS)
    missing = next((token for token in needed if token not in vocabulary), None)
    if vocabulary and missing:
        return (
            f"the vocabulary of {model.path.name} lacks {missing}, which {projector.path.name} needs, so it may belong"
            f" to another model; {advice}"
        )
    return None


def _basename(header: GgufHeader) -> str | None:
    name = header.value("general.basename")
    return name if isinstance(name, str) else None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]|mmproj", "", name.lower())
