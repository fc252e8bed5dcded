"""Runs llama.cpp's converter on checkpoints of tests.families.expected. Runs in the peer's venv.

    <peer's python> -m tests.families.with_converter FOLDER CASE ...

FOLDER/CASE is the checkpoint; FOLDER/CASE.gguf is written, f32. A line on stderr for each that the converter fails on.
tests/families/whole_files.py calls this.
"""

import json
import sys
from pathlib import Path

from tests.families.models import all_cases
from tests.families.with_transformers import convert


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    for name in names:
        case = all_cases()[name][1]
        settings = {"hparams": json.loads((folder / name / "config.json").read_text())} if case.raw_config else {}
        try:
            convert(folder / name, folder / f"{name}.gguf", case.pre if case.vocabulary else None, **settings)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
            (folder / f"{name}.gguf").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
