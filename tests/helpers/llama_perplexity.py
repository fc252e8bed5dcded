"""llama-perplexity itself: its command, and what it prints at the end."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.llama_tools import compiled_tool

_WRAPPER = Path(__file__).with_suffix(".cpp")
_FILES = ("common/common.cpp",)
_NUMBER = r"(-?\d+\.\d+)"


@dataclass(frozen=True)
class Printed:
    """A figure as it is printed: `text` of the value, and of its error where one is printed."""

    text: str
    error_text: str = ""

    @property
    def value(self) -> float:
        return float(self.text)

    @property
    def error(self) -> float:
        return float(self.error_text)

    @property
    def half_digit(self) -> float:
        """How far from the printed figure the figure itself can be."""
        return 0.5 * 10.0 ** -len(self.text.partition(".")[2])

    def digits_of(self, value: float) -> str:
        """`value` with as many digits."""
        return f"{value:.{len(self.text.partition('.')[2])}f}"


def perplexity_command(
    model: Path, text: Path, *, chunks: int, threads: int = 2, base: Path | None = None, kl: bool = False
) -> list[str]:
    """llama-perplexity over windows of 512; `base`: its file of log probabilities, written, or with `kl` read."""
    program = compiled_tool("perplexity", _WRAPPER, _FILES, optimize="-O3")
    command = [
        str(program),
        "-m",
        str(model),
        "-f",
        str(text),
        "-c",
        "512",
        "--chunks",
        str(chunks),
        "-t",
        str(threads),
    ]
    command += ["--kl-divergence-base", str(base)] if base else []
    return [*command, "--kl-divergence"] if kl else command


def llama_perplexity(model: Path, text: Path, *, chunks: int, base: Path | None = None) -> Printed:
    """The final estimate for a GGUF file."""
    output = _run(perplexity_command(model, text, chunks=chunks, base=base))
    match = re.search(rf"Final estimate: PPL = {_NUMBER} \+/- {_NUMBER}", output)
    assert match, output[-2000:]
    return Printed(*match.groups())


def llama_kl_divergence(model: Path, text: Path, base: Path, *, chunks: int) -> Mapping[str, Printed]:
    """The figures of its three tables by the names printed: "Mean PPL(Q)", "99.9% KLD", "Same top p" (per cent)..."""
    output = _run(perplexity_command(model, text, chunks=chunks, base=base, kl=True))
    lines = re.findall(rf"^(\S[^:\n]*?)\s*:\s+{_NUMBER}(?: ±\s+{_NUMBER})?", output, re.MULTILINE)
    return {re.sub(r"\s+", " ", name): Printed(value, error) for name, value, error in lines}


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout
