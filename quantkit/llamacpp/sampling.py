"""Sampling parameters of a model: given, recommended by its file, or llama.cpp's defaults."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.gguf.reader import GgufHeader

_HINTS = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "penalty_repeat",
}


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters; the defaults are those of llama.cpp's programs. `seed` None: random."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None

    @classmethod
    def of(cls, header: GgufHeader, options: Mapping[str, Any]) -> "Sampling":
        """The given options, else what the file recommends (`general.sampling.*`), else the defaults."""
        hints = {name: header.value(f"general.sampling.{key}") for name, key in _HINTS.items()}
        hinted = {name: value for name, value in hints.items() if isinstance(value, int | float)}
        return cls(**{**hinted, **{name: value for name, value in options.items() if value is not None}})

    def document(self) -> dict[str, Any]:
        """The fields of a request; without a seed, a random one."""
        seed = random.getrandbits(32) if self.seed is None else self.seed
        return {**vars(self), "top_k": int(self.top_k), "seed": seed}
