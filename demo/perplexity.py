"""`python -m demo.perplexity`: the closing table of the demo, with each file's perplexity measured by llama.cpp.

The yardstick is the same checkpoint as bf16, which loses nothing. The change against it is paired token by token, so
its error is far below that of the perplexities themselves.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from demo.convert import OUTPUT, TYPES
from demo.inputs import CACHE
from demo.smollm2 import NAME, smollm2_checkpoint
from demo.wikitext import wikitext2_test
from quantkit.errors import QuantkitError
from quantkit.measure.perplexity import Perplexity, perplexity, perplexity_ratio

N_CHUNKS = 6


@dataclass(frozen=True)
class Row:
    label: str
    path: Path
    measured: Perplexity


def main() -> int:
    out = Console(highlight=False)
    try:
        rows = _measure(out)
    except QuantkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    out.print(_table(rows))
    return 0


def _measure(out: Console) -> list[Row]:
    started = time.monotonic()
    text = wikitext2_test()
    rows = []
    for path in (_reference(), *(_file(OUTPUT, kind) for kind in TYPES)):
        label = path.stem.removeprefix(NAME + "-")
        with out.status(f"perplexity of {label} ..."):
            measured = perplexity(path, text, n_chunks=N_CHUNKS)
        if not out.is_terminal:
            out.print(f"perplexity of {label}: {measured.value:.2f} ({time.monotonic() - started:.0f} s)")
        rows.append(Row(label, path, measured))
    return rows


def _reference() -> Path:
    """The source as a bf16 GGUF, made by quantkit too, away from the demo's output."""
    folder = CACHE.parent / "demo-reference"
    command = [sys.executable, "-m", "quantkit", "gguf", str(smollm2_checkpoint()), "-t", "bf16", "-o", str(folder)]
    done = subprocess.run([*command, "--force", "--no-logits", "--format", "quiet"], capture_output=True, check=False)
    path = _file(folder, "bf16")
    if done.returncode or not path.is_file():
        raise QuantkitError(f"the bf16 reference was not made: {done.stderr.decode(errors='replace').strip()}")
    return path


def _file(folder: Path, kind: str) -> Path:
    return folder / f"{NAME}-GGUF" / f"{NAME}-{kind.upper()}.gguf"


def _table(rows: list[Row]) -> Table:
    reference = rows[0].measured
    table = Table(
        title=f"{NAME} on WikiText-2 test",
        caption=(
            f"llama.cpp's convention: {reference.n_chunks} windows of 512 tokens, {reference.n_tokens} scored. "
            "± is one standard error; the change is paired token by token."
        ),
    )
    for heading in ("type", "size", "bits/weight", "perplexity", "change from the source"):
        table.add_column(heading, justify="left" if heading == "type" else "right")
    for row in rows:
        ratio, error = perplexity_ratio(row.measured, reference)
        table.add_row(
            row.label if row.measured is not reference else f"{row.label} (source)",
            f"{row.path.stat().st_size / 1e6:.1f} MB",
            _bits_per_weight(row.path),
            f"{row.measured.value:.2f} ± {row.measured.error:.2f}",
            f"{100 * (ratio - 1):+.1f} ± {100 * error:.1f} %" if row.measured is not reference else "",
        )
    return table


def _bits_per_weight(path: Path) -> str:
    origin = json.loads((path.parent / "quantkit.json").read_text(encoding="utf-8"))
    return f"{origin['outputs'][path.stem]['bits_per_weight']:.2f}"


if __name__ == "__main__":
    sys.exit(main())
