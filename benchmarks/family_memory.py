"""`python -m benchmarks.memory --families`: announced and measured memory of one tiny model of each family, made wide.

The models have four times the widths of the tests' tiny models, a vocabulary of 262,144 tokens, and random weights
(100 to 600 MB, removed after their turn). Announced is never below the peak of the process that announces it.
llama.cpp's processes are announced apart, as "takes up to ... more while it computes logits"; a calibration by
llama.cpp announces both processes together, without the GGUF that llama.cpp maps.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.large_vocabulary import write_large_tokenizer
from benchmarks.lines import WORK, Lines, Target
from benchmarks.measured import descendants
from benchmarks.process import measure
from quantkit.families.base.registry import find_family
from tests.families.expected import expected
from tests.families.models import all_cases
from tests.helpers.hub_server import Repo, running_hub
from tests.helpers.peer import Peer, newest_converter, peer_converter
from tests.vision.cases import PROCESSOR

_FOLDER = WORK / f"families-{os.getpid()}"
_VOCABULARY = 262144
_BLOCK = 1 << 22
FEW = ("--samples", "8", "--seq-len", "256", "--raw")
QUANTIZED = ("fp8", "mlx-4bit", "nvfp4a16", "awq", "gptq", "w8a16")
_PLAIN = "llama"
COMMANDS: dict[str, tuple[str, ...]] = {
    "gguf": ("gguf", "-t", "q4_k_m"),
    "awq": ("awq", "--group-size", "32", *FEW),
    "gptq": ("gptq", "--group-size", "32", *FEW),
    "imatrix": ("imatrix", *FEW),
    "feedback": ("gguf", "-t", "q4_0", "--calibrate", "--solver", "feedback", *FEW),
    "fp8": ("convert", "-t", "fp8"),
    "mmproj": ("gguf", "-t", "q4_k_m", "--mmproj", "f16"),
}


class Peaks(threading.Thread):
    """The largest resident set of each process that this one has started, looked at twenty times a second.

    `own`: without the pages of mapped files.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes: dict[int, int] = {}
        self.own: dict[int, int] = {}
        self.words: dict[int, str] = {}
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.05):
            for pid in descendants(os.getpid()):
                status = _status_bytes(pid)
                peak = status.get("VmHWM", 0)
                self.bytes[pid] = max(self.bytes.get(pid, 0), peak)
                own = status.get("RssAnon", 0) + status.get("RssShmem", 0)
                self.own[pid] = max(self.own.get(pid, 0), own)
                if peak:  # a new process has the words of its parent until it runs its own program
                    self.words[pid] = _command_line(pid) or self.words.get(pid, "")

    def of(self, word: str) -> int:
        """The largest of the processes with `word` in their command line; 0 for none."""
        return max((self.bytes[pid] for pid, words in self.words.items() if word in words), default=0)

    def own_of(self, word: str) -> int:
        """As `of`, without mapped files."""
        return max((self.own[pid] for pid, words in self.words.items() if word in words), default=0)

    def __enter__(self) -> "Peaks":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _status_bytes(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.endswith("kB")}


def one_case_of_each_family() -> list[str]:
    """Names of tiny models, one for each family; the first of its cases."""
    names: dict[str, str] = {}
    for name in all_cases():
        names.setdefault(find_family(expected(name).config).architectures[0], name)
    return list(names.values())


@dataclass(frozen=True)
class WideModel:
    """config.json, and dtype and shape of each tensor. `widened`: the widths grew, not only the vocabulary."""

    config: Mapping[str, Any]
    layout: Mapping[str, tuple[str, Sequence[int]]]
    widened: bool


def wide_models(names: Sequence[str], folder: Path) -> dict[str, WideModel]:
    """The wide models of the cases `names`, by transformers in the peers' environments."""
    folder.mkdir(parents=True, exist_ok=True)
    newest = [name for name in names if all_cases()[name][1].newest]
    older = [name for name in names if name not in newest]
    for some, peer in ((newest, newest_converter), (older, peer_converter)):
        if some:
            _run_peer(peer(), folder, some)
    return {name: WideModel(**json.loads((folder / f"{name}.json").read_text())) for name in names}


def _run_peer(peer: Peer, folder: Path, names: Sequence[str]) -> None:
    environment = {**peer.environment(), "PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(peer.source / "gguf-py")])}
    command = [str(peer.python), "-m", "benchmarks.wide_shapes", str(folder), *names]
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)


@contextmanager
def wide_checkpoint(name: str, model: WideModel) -> Iterator[Path]:
    """The checkpoint for as long as it is measured."""
    folder = _FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        style = all_cases()[name][1].tokenizer
        tokenizer = _FOLDER / f"tokenizer-{style}"
        if not tokenizer.exists():
            tokenizer.mkdir()
            write_large_tokenizer(tokenizer, style, _VOCABULARY)
        for file in tokenizer.iterdir():
            os.link(file, folder / file.name)
        (folder / "config.json").write_text(json.dumps(model.config))
        if "vision_config" in model.config:
            (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        _write_weights(folder / "model.safetensors", model.layout)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_weights(path: Path, layout: Mapping[str, tuple[str, Sequence[int]]]) -> None:
    """Write tensors of random values, bfloat16, or uint8 where the layout has it; a random block over and over."""
    noise = np.random.RandomState(0).standard_normal(_BLOCK).astype(np.float32)
    block = memoryview((noise * 0.1).astype(ml_dtypes.bfloat16).tobytes())
    header: dict[str, Any] = {}
    sizes: list[int] = []
    offset = 0
    for name, (kind, shape) in layout.items():
        size = int(np.prod(shape)) * (1 if kind == "uint8" else 2)
        code = "U8" if kind == "uint8" else "BF16"
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset, sizes = offset + size, [*sizes, size]
    head = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for number, size in enumerate(sizes):
            start = 2 * (number * 7919 % (_BLOCK // 2))
            while size:
                piece = block[start : start + min(size, _BLOCK)]
                file.write(piece)
                size -= len(piece)


def measure_command(
    bench: Lines, model: str, words: Sequence[str | Path], *, threads: int, environment: Mapping[str, str] | None = None
) -> None:
    """Run a command that writes, and add its line: announced and measured."""
    out = _FOLDER / "out"
    shutil.rmtree(out, ignore_errors=True)
    target = out / "matrix.gguf" if words[0] == "imatrix" else out
    command: list[str | Path] = [sys.executable, "-m", "quantkit", *words, "-o", target, "--threads", str(threads)]
    try:
        logits = _announced_of_llama_cpp(command, environment)
        with Peaks() as peaks:
            taken = measure([*command, "--format", "json"], env=environment)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        bench.raw[model] = {"not run": reason}
        print(f"  {model:<40} not run: {reason}", flush=True)
        return
    finally:
        shutil.rmtree(out, ignore_errors=True)
    document = json.loads(taken.stdout)
    announced, peak = document["expected_peak_memory_bytes"], document["peak_memory_bytes"]
    peak = max(peak, peaks.of("-m quantkit "))
    child = peaks.of("quantkit.llamacpp.child")
    bench.raw[model] = {"announced": announced, "peak": peak, "llama_cpp": child, "llama_cpp_announced": logits}
    bench.add(Target("peak", model, peak / 1e6, "MB", at_most=announced / 1e6))
    bench.add(Target("  llama.cpp's process", model, child / 1e6, "MB", at_most=logits / 1e6 if logits else None))
    if child and not logits:
        both = peak + peaks.own_of("quantkit.llamacpp.child")
        bench.add(Target("  both, without mapped files", model, both / 1e6, "MB", at_most=announced / 1e6))


def _announced_of_llama_cpp(command: Sequence[str | Path], environment: Mapping[str, str] | None) -> int:
    """Bytes that the command announces for llama.cpp's processes while they compute logits; 0 if it does not."""
    done = subprocess.run([*command, "--dry-run"], env=environment, capture_output=True, text=True, check=False)
    stated = re.search(r"llama.cpp takes up to (\S+) (\wB) more while it computes logits", done.stderr)
    return round(float(stated[1]) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[stated[2]]) if stated else 0


def measure_families(bench: Lines, names: Sequence[str], commands: Sequence[str], threads: int) -> None:
    """Announced and measured memory of `commands` on the wide models of the cases `names`; all without names."""
    with _folder():
        for name, model in wide_models(names or one_case_of_each_family(), _FOLDER / "shapes").items():
            with wide_checkpoint(name, model) as checkpoint:
                for command in commands:
                    first, *options = COMMANDS[command]
                    measure_command(bench, f"{name} {command}", [first, checkpoint, *options], threads=threads)


def measure_sources(bench: Lines, threads: int) -> None:
    """The same of a wide Llama from a server, from quantized folders, and from a GGUF."""
    with _folder():
        model = wide_models([_PLAIN], _FOLDER / "shapes")[_PLAIN]
        with wide_checkpoint(_PLAIN, model) as checkpoint:
            with running_hub() as hub:
                hub.repos["ORG/NAME"] = Repo({path.name: path.read_bytes() for path in checkpoint.iterdir()})
                environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(_FOLDER / "hub")}
                words = ["gguf", "ORG/NAME", "-t", "q4_k_m", "--stream"]
                measure_command(bench, "--stream", words, threads=threads, environment=environment)
            made = _FOLDER / "made"
            types = [word for kind in QUANTIZED for word in ("-t", kind)]
            measure([sys.executable, "-m", "quantkit", "convert", checkpoint, *types, "-t", "bf16", *FEW, "-o", made])
        for source in sorted(path for path in made.iterdir() if path.suffix != ".json"):
            path = next(source.glob("*.gguf"), source)
            for name in ("gguf", "feedback") if path.suffix == ".gguf" else ("gguf",):
                first, *options = COMMANDS[name]
                more = ["--allow-requantize"] if path.suffix == ".gguf" else []
                measure_command(bench, f"{source.name} {name}", [first, path, *options, *more], threads=threads)


@contextmanager
def _folder() -> Iterator[None]:
    shutil.rmtree(_FOLDER, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(_FOLDER, ignore_errors=True)
