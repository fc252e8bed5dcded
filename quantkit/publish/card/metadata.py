"""A card's metadata for the hub: the YAML at the start of README.md.

https://huggingface.co/docs/hub/model-cards#model-card-metadata; the licences' identifiers are those of
https://huggingface.co/docs/hub/repositories-licenses, in licenses.txt (any other licence is `other` with its name).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError
from quantkit.publish.card.escaping import one_line

LICENSES = frozenset(Path(__file__).with_name("licenses.txt").read_text("utf-8").split())
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code")
_NAME_OF_LICENSE = 60


def is_hub_id(text: str) -> bool:
    """Whether the text is a valid ORG/NAME of the hub."""
    # loaded here, because every command that can name a model imports this module
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text


@dataclass(frozen=True)
class Metadata:
    """What the hub is told of a folder of outputs.

    Attributes:
        kind: "gguf", or a format of folders such as "awq".
        base_model: used if it is a hub id.
        languages: ISO 639 codes.
        hub_repo: its owner becomes `quantized_by`.
        bits: of a weight, for the tags of a folder.
        sees: whether the model takes images.
    """

    kind: str
    base_model: str | None = None
    license: str | None = None
    languages: Sequence[str] = ()
    hub_repo: str | None = None
    conversational: bool = False
    imatrix: bool = False
    bits: int | None = None
    sees: bool = False

    def fields(self) -> dict[str, Any]:
        """Plain values, in the order of the YAML. Raises UsageError for a language that is not an ISO 639 code."""
        base = self.base_model if self.base_model is not None and is_hub_id(self.base_model) else None
        fields: dict[str, Any] = {
            "base_model": base,
            "base_model_relation": "quantized" if base else None,
            "language": [_language(code) for code in self.languages] or None,
            **license_of(self.license),
            "library_name": None if self.kind == "gguf" else "transformers",
            "pipeline_tag": "image-text-to-text" if self.sees else "text-generation",
            "quantized_by": self.hub_repo.partition("/")[0] if self.hub_repo and is_hub_id(self.hub_repo) else None,
            "inference": False,
            "tags": self._tags(),
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _tags(self) -> list[str]:
        of_kind = ["gguf", "llama.cpp", "ollama"] if self.kind == "gguf" else [self.kind]
        optional = {
            f"{self.bits}-bit": self.bits and self.kind != "gguf",
            "imatrix": self.imatrix,
            "conversational": self.conversational,
        }
        return [*of_kind, *(tag for tag, applies in optional.items() if applies), "quantkit"]


def page_of(model: str) -> str | None:
    """The page of a hub id, or of modelscope:ORG/NAME; None for another text."""
    hub, _, name = model.rpartition(":")
    if hub == "modelscope" and is_hub_id(name):
        return f"https://modelscope.cn/models/{name}"
    return f"https://huggingface.co/{model}" if is_hub_id(model) else None


def front_matter(fields: dict[str, Any]) -> str:
    """The YAML between lines of dashes, as huggingface_hub writes it."""
    from huggingface_hub import ModelCardData

    return f"---\n{ModelCardData(**fields).to_yaml()}\n---\n"


def license_of(text: str | None) -> dict[str, str]:
    """The licence fields: the hub's identifier, or `other` with the name in the hub's characters."""
    name = one_line(text or "")
    if not name:
        return {}
    identifier = name.lower()
    if identifier in LICENSES:
        return {"license": identifier}
    slug = re.sub(r"[^a-z0-9.]+", "-", identifier)[:_NAME_OF_LICENSE].strip("-.")
    return {"license": "other", **({"license_name": slug} if slug else {})}


def _language(text: str) -> str:
    if not _LANGUAGE.fullmatch(text):
        raise UsageError(f"language {text!r} is not an ISO 639 code; pass en, zh, multilingual or code")
    return text
