"""Projectors (mmproj) without rules of quantkit's: what llama.cpp's converter will write beside the text model."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.gguf.file_types import FileType
from quantkit.llamacpp.converter import Converter, ConverterOptions


@dataclass(frozen=True)
class BridgedProjectors:
    """The files folder/mmproj-NAME-TYPE.gguf, by `tool` with `options`, of the checkpoint in `source`.

    `source_name`: the name of the checkpoint. `origin`: the record of the checkpoint and of the converter.
    """

    types: tuple[FileType, ...]
    folder: Path
    name: str
    source: Path
    source_name: str
    tool: Converter
    options: ConverterOptions
    origin: Mapping[str, Any]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The final names, in the order of the types."""
        return tuple(self.folder / f"mmproj-{self.name}-{kind.label}.gguf" for kind in self.types)

    def fingerprint(self, text: str) -> str:
        """The fingerprint of a conversion that writes these files too; `text` is that of the rest."""
        facts = [text, [path.name for path in self.paths], dict(self.origin), self.options.pre, self.options.arguments]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
