"""`python -m demo.perplexity`: the closing table of the demo, with each file's perplexity measured by llama.cpp.

The reference is the same checkpoint as bf16, which loses nothing. The change is paired token by token, so its error is
far below that of the perplexities.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.convert import OUTPUT, TYPES
from demo.inputs import CACHE
from demo.smollm2 import NAME, smollm2_checkpoint
from demo.wikitext import wikitext2_test
from quantkit.errors import QuantkitError
from quantkit.measurement.perplexity import Perplexity, perplexity, perplexity_ratio
from quantkit.system.python import file_sha256

N_CHUNKS = 5
CHECKED = CACHE.parent / "demo-checked"


@dataclass(frozen=True)
class Row:
    label: str
    facts: dict[str, Any]
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
    text = wikitext2_test()
    with out.status("checking the files with llama.cpp, now that it is installed ..."):
        facts = _checked()
    out.print("\nMade again with llama.cpp installed: the same bytes, and every check passed.\n")
    rows = []
    for kind in ("bf16", *TYPES):
        with out.status(f"perplexity of {kind} ..."):
            measured = perplexity(_file(OUTPUT if kind in TYPES else CHECKED, kind), text, n_chunks=N_CHUNKS)
        if not out.is_terminal:
            out.print(f"perplexity of {kind}: {measured.value:.2f}")
        rows.append(Row(kind, facts[kind], measured))
    return rows


def _checked() -> dict[str, dict[str, Any]]:
    """Convert once more with all checks, with bf16 as the reference; quantkit's document of each output.

    The first conversion ran before llama.cpp was installed, so its tokens and logits could not be checked then.
    """
    wanted = [word for kind in ("bf16", *TYPES) for word in ("-t", kind)]
    command = [sys.executable, "-m", "quantkit", "gguf", str(smollm2_checkpoint()), *wanted, "-o", str(CHECKED)]
    done = subprocess.run([*command, "--force", "--format", "json"], capture_output=True, check=False, text=True)
    if done.returncode:
        raise QuantkitError(f"the files did not pass their checks: {done.stderr.strip()}")
    facts = {output["type"]: output for output in json.loads(done.stdout)["outputs"]}
    for kind in TYPES:
        if facts[kind]["files"][0]["sha256"] != _sha256(_file(OUTPUT, kind)):
            raise QuantkitError(f"{kind} came out with other bytes the second time")
    return facts


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_sha256(file)


def _file(folder: Path, kind: str) -> Path:
    return folder / f"{NAME}-GGUF" / f"{NAME}-{kind.upper()}.gguf"


def _table(rows: list[Row]) -> Table:
    reference = rows[0].measured
    table = Table(
        title=f"{NAME} on WikiText-2 test",
        box=None,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
        caption=(
            f"llama.cpp's convention: {reference.n_chunks} windows of 512 tokens, {reference.n_tokens} scored. "
            "± is one standard error; the change from bf16 (the source's own precision) is paired token by token. "
            "bits: per weight; time: CPU seconds of quantizing; logits: correlation with the source's."
        ),
    )
    for heading in ("type", "size", "bits", "time", "logits", "perplexity", "change"):
        table.add_column(heading, justify="left" if heading == "type" else "right", no_wrap=True)
    for row in rows:
        ratio, error = perplexity_ratio(row.measured, reference)
        table.add_row(
            row.label,
            f"{row.facts['bytes'] / 1e6:.1f} MB",
            f"{row.facts['bits_per_weight']:.2f}",
            f"{row.facts['quantize_cpu_seconds']:.1f} s",
            f"{row.facts['logit_correlation']:.4f}",
            f"{row.measured.value:.2f} ± {row.measured.error:.2f}",
            f"{100 * (ratio - 1):+.1f} ± {100 * error:.1f} %" if row.measured is not reference else "",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
