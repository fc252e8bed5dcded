"""From a checkout to a first file: a new environment, `pip install .`, one conversion, without a compiler.

`python -m benchmarks.install [--uv]`. PATH holds no compiler and the cache folder is empty; what pip and uv keep of
earlier downloads is not used. With --uv, `uv pip install .` takes pip's place.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.lines import REPOSITORY, Lines, Target, figures, machine, print_machine
from benchmarks.process import measure
from demo.smollm2 import smollm2_checkpoint

_AT_MOST = 30.0


def main() -> None:
    """Print the seconds of each step and write bench-output/install.json."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--uv", metavar="UV", type=Path, help="install with this uv instead of pip")
    uv = options.parse_args().uv
    checkpoint = smollm2_checkpoint()
    facts = machine()
    print_machine(facts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "empty").mkdir()
        python = folder / "venv" / "bin" / "python"
        install = [python, "-m", "pip", "install", "--no-cache-dir", "-q", REPOSITORY]
        if uv:
            install = [uv.resolve(), "pip", "install", "--no-cache", "-q", "--python", python, REPOSITORY]
        commands: dict[str, list[str | Path]] = {
            "python -m venv": [sys.executable, "-m", "venv", folder / "venv"],
            "uv pip install ." if uv else "pip install .": install,
            "quantkit gguf SmolLM2 -t q4_k_m": [
                *(python, "-m", "quantkit", "gguf", checkpoint, "-t", "q4_k_m", "-o", folder / "out"),
            ],
        }
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CC")}
        environment |= {"PATH": str(folder / "empty"), "XDG_CACHE_HOME": str(folder / "cache")}
        runs = {name: measure(command, env=environment, folder=folder) for name, command in commands.items()}
    lines = Lines(raw={name: figures(run) for name, run in runs.items()})
    for name, run in runs.items():
        lines.add(Target(name, checkpoint.name, run.seconds, "s"))
        lines.add(Target("  CPU time of it", checkpoint.name, run.cpu_seconds, "s"))
    total = sum(run.seconds for run in runs.values())
    lines.add(Target("from a checkout to a first file", checkpoint.name, total, "s", at_most=_AT_MOST))
    lines.save("install", facts)


if __name__ == "__main__":
    main()
