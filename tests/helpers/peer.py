"""llama.cpp's own two steps as the peer: convert_hf_to_gguf.py in a venv of its own, then the real llama-quantize.

They come out of the llama-cpp-python sdist. The converter needs torch and transformers, which quantkit's own
environment must never see. The programs are compiled from their single files against the installed libllama (extra
`run`), so that they and the tests' other oracle are the same build. Everything lands under .cache/peer on first use.
"""

import fcntl
import importlib.util
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

REPOSITORY = Path(__file__).resolve().parents[2]
# The converter's arithmetic on weights is a cast, so a torch near the one that llama.cpp pins serves as well.
_TORCH = "torch==2.13.0"
_REQUIREMENTS = (
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
_CONVERTER = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/")
_SOURCES = (
    "common/",
    "ggml/include/",
    "include/",
    "tools/gguf-split/",
    "tools/quantize/",
)
# Program -> its sources; what they take from llama.cpp's common library beyond these is in peer_stubs.cpp.
_PROGRAMS = {
    "llama-quantize": ("tools/quantize/main.cpp", "tools/quantize/quantize.cpp", "common/imatrix-loader.cpp"),
    "llama-gguf-split": ("tools/gguf-split/gguf-split.cpp",),
}
_STUBS = Path(__file__).with_name("peer_stubs.cpp")


@dataclass(frozen=True)
class _Release:
    """A source distribution that holds a tree of llama.cpp, and the transformers that its converter runs with here.

    `tree` is the tree's folder in the archive, `wanted` the paths to unpack. `build` are packages that pip needs to
    read the archive's metadata. `programs`: compile llama.cpp's own programs too.
    """

    cache: Path
    sdist: str
    tree: str
    transformers: str
    wanted: tuple[str, ...] = _CONVERTER
    build: tuple[str, ...] = ()
    programs: bool = False


# transformers is as pinned in that tree: pre-tokenizers are recognised by what its tokenizers give.
_RUN = _Release(
    REPOSITORY / ".cache" / "peer",
    "llama-cpp-python==0.3.36",
    "/vendor/llama.cpp/",
    "transformers==4.57.6",
    wanted=_CONVERTER + _SOURCES,
    programs=True,
)
# The newest converter (b11549) beside the transformers that publishers of this year's models use.
_NEWEST = _Release(
    REPOSITORY / ".cache" / "peer-newest",
    "xllamacpp==2026.10.11549",
    "/thirdparty/llama.cpp/",
    "transformers==5.24.0",
    build=("setuptools", "wheel", "cython"),
)


@dataclass(frozen=True)
class Peer:
    """llama.cpp's tools, ready to run: a Python for its converter, its source tree, its compiled programs.

    Each call gives the wall seconds of its subprocess and raises AssertionError with the tool's words if it fails.
    """

    python: Path
    source: Path
    programs: Path

    def convert(self, checkpoint: Path, out: Path, outtype: str = "auto", *, pre: str | None = None) -> float:
        """Convert a Hugging Face folder into the GGUF `out`; wall seconds of the subprocess.

        `outtype` is one of f32, f16, bf16, q8_0, auto. `pre` is taken for the name of the pre-tokenizer: the converter
        knows tokenizers by a hash over the ids of a text, which a tokenizer trained for a test cannot have.
        Raises AssertionError with the converter's words if it fails.
        """
        seconds = _timed(self.convert_command(checkpoint, out, outtype, pre=pre), env=self.environment())
        assert out.exists(), f"the converter wrote no {out.name}"
        return seconds

    def quantize(
        self,
        source: Path,
        out: Path,
        ftype: int | str,
        *,
        threads: int = 2,
        imatrix: Path | None = None,
        allow_requantize: bool = False,
    ) -> float:
        """llama-quantize `source` into `out` as file type `ftype`, a number or "COPY".

        llama-quantize stores the imatrix's path as it is given; it is called from the file's folder, with its name.
        """
        return _timed(
            self.quantize_command(
                source, out, ftype, threads=threads, imatrix=imatrix, allow_requantize=allow_requantize
            ),
            cwd=imatrix.parent if imatrix else None,
        )

    def split(self, source: Path, prefix: Path, max_size: str) -> float:
        """llama-gguf-split `source` into shards of at most `max_size` ("2M"), named after `prefix`."""
        program = str(self.programs / "llama-gguf-split")
        return _timed([program, "--split", "--split-max-size", max_size, str(source), str(prefix)])

    def convert_command(
        self, checkpoint: Path, out: Path, outtype: str = "auto", *, pre: str | None = None
    ) -> list[str]:
        script = str(self.source / "convert_hf_to_gguf.py")
        start = [script] if pre is None else ["-c", _WITH_PRE, script, pre]
        return [str(self.python), *start, str(checkpoint), "--outfile", str(out), "--outtype", outtype]

    def quantize_command(
        self,
        source: Path,
        out: Path,
        ftype: int | str,
        *,
        threads: int = 2,
        imatrix: Path | None = None,
        allow_requantize: bool = False,
    ) -> list[str]:
        options = ["--imatrix", imatrix.name] if imatrix else []
        options += ["--allow-requantize"] if allow_requantize else []
        return [str(self.programs / "llama-quantize"), *options, str(source), str(out), str(ftype), str(threads)]

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(self.source / "gguf-py"),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }


def peer_converter() -> Peer:
    """The peer of the same llama.cpp as the extra `run`, installed on first use (about a minute, and 1.3 GB)."""
    return _installed(_RUN)


def newest_converter() -> Peer:
    """The newest llama.cpp's converter with transformers 5; it has no compiled programs."""
    return _installed(_NEWEST)


def _installed(release: _Release) -> Peer:
    cache = release.cache
    cache.mkdir(parents=True, exist_ok=True)
    peer = Peer(cache / "venv" / "bin" / "python", cache / "llama.cpp", cache / "bin")
    stamp = cache / "ready.json"
    requirements = [_TORCH, release.transformers, *_REQUIREMENTS]
    inputs = {"sdist": release.sdist, "requirements": requirements, "tree": list(release.wanted)}
    if release.programs:
        inputs |= {"libllama": str(installed_libraries()), "stubs": _STUBS.read_text()}
    with _locked(cache / "lock"):
        if not (stamp.exists() and json.loads(stamp.read_text()) == inputs):
            for folder in (cache / "venv", peer.source, peer.programs):
                shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(cache / "venv")])
            _pip(peer.python, "install", *requirements, *release.build)
            _unpack_sdist(peer, release)
            if release.programs:
                _compile(peer)
            stamp.write_text(json.dumps(inputs))
    return peer


def installed_libraries() -> Path:
    """Where llama-cpp-python keeps libllama and ggml; found without loading them."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None, "the peer needs the extra `dev`: pip install 'quantkit[dev]'"
    return Path(spec.origin).resolve().parent / "lib"


def _compile(peer: Peer) -> None:
    peer.programs.mkdir()
    libraries = str(installed_libraries())
    include = [f"-I{peer.source / folder}" for folder in ("common", "include", "ggml/include")]
    link = [f"-L{libraries}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}"]
    for program, files in _PROGRAMS.items():
        sources = [str(peer.source / file) for file in files]
        _run(["c++", "-O2", "-std=c++17", *include, *sources, str(_STUBS), *link, "-o", str(peer.programs / program)])


def _unpack_sdist(peer: Peer, release: _Release) -> None:
    name = release.sdist.split("==")[0]
    with tempfile.TemporaryDirectory(prefix="sdist-", dir=release.cache) as folder:
        # pip reads the metadata of what it downloads; neither package needs a compiler for that
        isolation = ["--no-build-isolation"] if release.build else []
        _pip(
            peer.python,
            "download",
            "--no-deps",
            *isolation,
            "--no-binary",
            name,
            "--dest",
            folder,
            release.sdist,
        )
        (archive,) = Path(folder).glob("*.tar.gz")
        unpacked = Path(folder) / "unpacked"
        with tarfile.open(archive) as tar:
            for member in tar:
                path = member.name.partition(release.tree)[2]
                if member.isfile() and path.startswith(release.wanted):
                    tar.extract(member, unpacked, filter="data")
        (tree,) = unpacked.glob("*" + release.tree)
        tree.rename(peer.source)


def _pip(python: Path, *arguments: str) -> None:
    _run([str(python), "-m", "pip", "--disable-pip-version-check", arguments[0], "--quiet", *arguments[1:]])


def _timed(command: list[str], *, env: dict[str, str] | None = None, cwd: Path | None = None) -> float:
    started = time.monotonic()
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, errors="replace", check=False)
    seconds = time.monotonic() - started
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return seconds


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
