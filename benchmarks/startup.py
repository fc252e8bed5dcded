"""Start-up: the time of `--help` as a share of the time that importing every command takes.

`python -m benchmarks.startup`. Each figure is the minimum of RUNS processes, alternating, so that another load of the
machine meets all of them alike.
"""

import sys

from benchmarks.lines import Lines, Target, figures, machine, print_machine
from benchmarks.process import Measured, measure

RUNS = 7
_EVERYTHING = (
    "from importlib import import_module; from quantkit.cli import COMMANDS;"
    " [import_module('quantkit.cli.' + name) for name in COMMANDS]; import huggingface_hub.hf_api"
)
COMMANDS = {
    "every command imported": [sys.executable, "-c", _EVERYTHING],
    "quantkit --help": [sys.executable, "-m", "quantkit", "--help"],
    "quantkit gguf --help": [sys.executable, "-m", "quantkit", "gguf", "--help"],
}
BOUNDS = {"quantkit --help": 0.3, "quantkit gguf --help": 0.35}


def main() -> None:
    """Print the ratios and write bench-output/startup.json."""
    facts = machine()
    print_machine(facts)
    runs: dict[str, list[Measured]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):
        for name, command in COMMANDS.items():
            runs[name].append(measure(command))
    best = {name: min(measured, key=lambda run: run.seconds) for name, measured in runs.items()}
    lines = Lines(raw={name: figures(run) for name, run in best.items()})
    everything = best["every command imported"].seconds
    lines.add(Target("every command imported", "", everything, "s"))
    for name, bound in BOUNDS.items():
        lines.add(Target(f"{name} / every command imported", "", best[name].seconds / everything, "", at_most=bound))
    lines.save("startup", facts)


if __name__ == "__main__":
    main()
