"""llama.cpp's own two steps as the peer: its converter in a venv of its own, then its quantizer.

The converter comes out of the llama-cpp-python sdist, so that both steps are the same llama.cpp; it needs torch and
transformers, which quantkit's own environment must never see. Everything lands under .cache/peer on first use.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CACHE = REPOSITORY / ".cache" / "peer"
SDIST = "llama-cpp-python==0.3.36"
# llama.cpp pins torch 2.11.0; the converter's arithmetic on weights is a cast, so the nearest release that is at hand
# will do. transformers is as pinned there: pre-tokenizers are recognised by what its tokenizers give.
REQUIREMENTS = (
    "torch==2.13.0",
    "transformers==4.57.6",
    "numpy>=2.2,<3",
    "sentencepiece>=0.2,<0.3",
    "protobuf>=4.21,<8",
    "pyyaml",
    "tqdm",
    "requests",
)
# Arguments: the script, the pre-tokenizer's name, then what the script takes.
_WITH_PRE = """
import runpy, sys
from pathlib import Path
script, name = sys.argv[1:3]
sys.argv = [script, *sys.argv[3:]]
sys.path.insert(0, str(Path(script).parent))
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: name
runpy.run_path(script, run_name="__main__")
"""
_WANTED = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/")


@dataclass(frozen=True)
class Peer:
    """llama.cpp's converter, ready to run: a Python that can, and the folder of convert_hf_to_gguf.py."""

    python: Path
    source: Path

    def convert(self, checkpoint: Path, out: Path, outtype: str = "auto", *, pre: str | None = None) -> float:
        """Convert a Hugging Face folder into the GGUF `out`; wall seconds of the subprocess.

        `outtype` is one of f32, f16, bf16, q8_0, auto. `pre` is taken for the name of the pre-tokenizer: the converter
        knows tokenizers by a hash over the ids of a text, which a tokenizer trained for a test cannot have.
        Raises AssertionError with the converter's words if it fails.
        """
        started = time.monotonic()
        done = subprocess.run(
            self.command(checkpoint, out, outtype, pre=pre),
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - started
        assert done.returncode == 0 and out.exists(), f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return seconds

    def command(self, checkpoint: Path, out: Path, outtype: str = "auto", *, pre: str | None = None) -> list[str]:
        script = str(self.source / "convert_hf_to_gguf.py")
        start = [script] if pre is None else ["-c", _WITH_PRE, script, pre]
        return [str(self.python), *start, str(checkpoint), "--outfile", str(out), "--outtype", outtype]

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(self.source / "gguf-py"),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }


def peer_converter() -> Peer:
    """The peer, installed on first use (a minute, about 1.5 GB with a CPU torch)."""
    CACHE.mkdir(parents=True, exist_ok=True)
    peer = Peer(CACHE / "venv" / "bin" / "python", CACHE / "llama.cpp")
    stamp = CACHE / "ready.json"
    wanted = {"sdist": SDIST, "requirements": list(REQUIREMENTS)}
    with _locked(CACHE / "lock"):
        if not (stamp.exists() and json.loads(stamp.read_text()) == wanted):
            shutil.rmtree(CACHE / "venv", ignore_errors=True)
            shutil.rmtree(peer.source, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(CACHE / "venv")])
            _pip(peer.python, "install", *REQUIREMENTS)
            _unpack_sdist(peer)
            stamp.write_text(json.dumps(wanted))
    return peer


def _unpack_sdist(peer: Peer) -> None:
    with tempfile.TemporaryDirectory(prefix="sdist-", dir=CACHE) as folder:
        # pip reads the metadata of what it downloads, which for this package needs no compiler
        _pip(
            peer.python,
            "download",
            "--no-deps",
            "--no-binary",
            SDIST.split("==")[0],
            "--dest",
            folder,
            SDIST,
        )
        (archive,) = Path(folder).glob("*.tar.gz")
        unpacked = Path(folder) / "unpacked"
        with tarfile.open(archive) as tar:
            for member in tar:
                path = member.name.partition("/vendor/llama.cpp/")[2]
                if member.isfile() and path.startswith(_WANTED):
                    tar.extract(member, unpacked, filter="data")
        (tree,) = unpacked.glob("*/vendor/llama.cpp")
        tree.rename(peer.source)


def _pip(python: Path, *arguments: str) -> None:
    _run([str(python), "-m", "pip", "--disable-pip-version-check", arguments[0], "--quiet", *arguments[1:]])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
