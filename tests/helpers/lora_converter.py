"""llama.cpp's convert_lora_to_gguf.py of the newest release: its script beside the converter of tests.helpers.peer.

Run in the converter's Python, with jobs as JSON: `python lora_converter.py SCRIPT JOBS`; it prints the errors by job.
"""

import contextlib
import json
import os
import runpy
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

SCRIPT = "convert_lora_to_gguf.py"


def convert_adapters(jobs: Sequence[tuple[Path, Path, Path, str]]) -> list[str | None]:
    """Run the script for each (adapter, base, GGUF to write, type); its error, None if it wrote the file."""
    from tests.helpers.peer import newest_converter

    peer = newest_converter()
    script = _script(peer.python, peer.source)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "jobs.json"
        file.write_text(json.dumps([[str(word) for word in job] for job in jobs]))
        command = [str(peer.python), __file__, str(script), str(file)]
        environment = {**peer.environment(), "NO_LOCAL_GGUF": "1", "PYTHONPATH": f"{peer.source}/gguf-py:{peer.source}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    errors: list[str | None] = json.loads(done.stdout.splitlines()[-1])
    return errors


def _script(python: Path, tree: Path) -> Path:
    """The script out of the source distribution that `tree` came from, in a folder of its own beside it."""
    script = tree.parent.with_name("peer-lora") / SCRIPT
    if not script.exists():
        sdist = json.loads((tree.parent / "ready.json").read_text())["sdist"]
        script.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            words = ["download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary", sdist.split("==")[0]]
            subprocess.run([str(python), "-m", "pip", *words, "--dest", folder, sdist], check=True)
            (archive,) = Path(folder).glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                member = next(name for name in tar.getnames() if name.endswith(f"/llama.cpp/{SCRIPT}"))
                extracted = tar.extractfile(member)
                assert extracted is not None
                script.write_bytes(extracted.read())
    return script


def main() -> None:
    script, jobs = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    errors: list[str | None] = []
    for adapter, base, out, kind in jobs:
        sys.argv = [script, adapter, "--base", base, "--outfile", out, "--outtype", kind]
        try:
            with contextlib.redirect_stdout(sys.stderr):
                runpy.run_path(script, run_name="__main__")
            errors.append(None)
        except (Exception, SystemExit) as error:
            errors.append(f"{type(error).__name__}: {error}")
    print(json.dumps(errors), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
