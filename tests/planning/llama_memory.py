"""llama.cpp's own account of its memory as the oracle: a model loaded (or only sized) in a process of its own.

The figures are those that llama.cpp logs while it loads. `no_alloc` sizes everything and allocates nothing, so a header
in front of a hole is enough for a model of any size; KV and compute buffers are then what the real load would take.
Run by hand: `python -m tests.planning.llama_memory JOBS.json`.
"""

import ctypes
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.helpers.forked import run_process

REPOSITORY = Path(__file__).resolve().parents[2]
TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}
_MIB = 1 << 20


@dataclass(frozen=True)
class Job:
    """One model and the settings of one context; `repack` lets llama.cpp rearrange q4_0 for the CPU."""

    path: str
    n_ctx: int = 512
    kv: str = "f16"
    n_batch: int = 2048
    n_ubatch: int = 512
    flash: int = -1
    no_alloc: bool = False
    repack: bool = False
    embeddings: bool = False


@dataclass(frozen=True)
class Measured:
    """Bytes, as exact as the log's hundredths of a MiB."""

    weights: float
    kv: float
    compute: float
    output: float
    log: str

    @property
    def total(self) -> float:
        return self.weights + self.kv + self.compute + self.output


class OracleError(AssertionError):
    """llama.cpp refused or aborted; the message is its log."""


def measure(jobs: Sequence[Job]) -> list[Measured]:
    """All jobs in one process, in order."""
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        file, logs = Path(folder, "jobs.json"), Path(folder, "logs.jsonl")
        file.write_text(json.dumps([asdict(job) for job in jobs]))
        done = run_process(
            [sys.executable, "-m", "tests.planning.llama_memory", str(file), str(logs)],
            cwd=REPOSITORY,
            text=True,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            modules=("llama_cpp", "gguf"),
        )
        records = [json.loads(line) for line in logs.read_text().splitlines()] if logs.exists() else []
        if done.returncode or len(records) != len(jobs):
            raise OracleError(f"llama.cpp aborted in job {len(records)} of {len(jobs)}:\n{done.stdout}\n{done.stderr}")
        return [_read(breakdown, log) for breakdown, log in records]


def _read(breakdown: list[int], log: str) -> Measured:
    def total(pattern: str) -> float:
        return sum(float(number) for number in re.findall(pattern, log)) * _MIB

    compute = total(r"compute buffer size = +([\d.]+) MiB")
    if not compute:
        raise OracleError(log)
    return Measured(
        # with no_alloc no buffer of weights is made, and only the breakdown has their size
        weights=total(r"model buffer size = +([\d.]+) MiB") or breakdown[0],
        # with no_alloc the KV buffer itself is empty; its size is in the line of its cells
        kv=total(r"(?:llama_kv_cache|llama_memory_recurrent): size = +([\d.]+) MiB")
        + total(r"llama_dsv4_comp_state: .*, size = +([\d.]+) MiB"),
        compute=compute,
        output=total(r" output buffer size = +([\d.]+) MiB"),
        log=log,
    )


def _main(jobs: Path, logs: Path) -> None:
    import llama_cpp

    pieces: list[str] = []

    @llama_cpp.llama_log_callback
    def collect(_level: int, text: bytes, _user_data: Any) -> None:
        pieces.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    with logs.open("w") as file:
        for record in json.loads(jobs.read_text()):
            pieces.clear()
            breakdown = _load(llama_cpp, Job(**record))
            file.write(json.dumps([breakdown, "".join(pieces)]) + "\n")
            file.flush()


def _load(llama_cpp: Any, job: Job) -> list[int]:
    params = llama_cpp.llama_model_default_params()
    params.no_alloc = job.no_alloc
    params.use_extra_bufts = job.repack
    if job.no_alloc:
        # LLAMA_LOAD_MODE_NONE: nothing is mapped where nothing is to be read
        params.load_mode = 0
    model = llama_cpp.llama_model_load_from_file(job.path.encode(), params)
    if not model:
        return []
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = job.n_ctx, job.n_batch, job.n_ubatch
    # what llama-cli and llama-server do; the library by itself gives sliding layers a cache for the whole context
    settings.swa_full = False
    settings.embeddings = job.embeddings
    settings.flash_attn_type = job.flash
    settings.type_k = settings.type_v = TYPES[job.kv]
    context = llama_cpp.llama_init_from_model(model, settings)
    breakdown = _breakdown(llama_cpp, context) if context else []
    if context:
        llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return breakdown


class _Node(ctypes.Structure):
    """A node of std::map<buffer type, {model, context, compute}> in libstdc++."""


_Node._fields_ = [
    ("colour", ctypes.c_int),
    ("parent", ctypes.POINTER(_Node)),
    ("left", ctypes.POINTER(_Node)),
    ("right", ctypes.POINTER(_Node)),
    ("buffer_type", ctypes.c_void_p),
    ("model", ctypes.c_size_t),
    ("context", ctypes.c_size_t),
    ("compute", ctypes.c_size_t),
]


class _Map(ctypes.Structure):
    _fields_ = [
        ("compare", ctypes.c_size_t),
        ("colour", ctypes.c_size_t),
        ("root", ctypes.POINTER(_Node)),
        ("left", ctypes.POINTER(_Node)),
        ("right", ctypes.POINTER(_Node)),
        ("count", ctypes.c_size_t),
    ]


def _breakdown(llama_cpp: Any, context: Any) -> list[int]:
    """Bytes of model, context and compute over all buffer types (llama_get_memory_breakdown, a C++ function)."""
    function = llama_cpp.llama_cpp._lib["_Z26llama_get_memory_breakdownPK13llama_context"]
    # a class that is returned by value comes through a hidden first pointer
    function.argtypes, function.restype = [ctypes.POINTER(_Map), ctypes.c_void_p], ctypes.c_void_p
    sizes = _Map()
    function(ctypes.byref(sizes), context)
    total = [0, 0, 0]

    def walk(node: Any) -> None:
        if node:
            entry = node.contents
            for i, size in enumerate((entry.model, entry.context, entry.compute)):
                total[i] += size
            walk(entry.left)
            walk(entry.right)

    walk(sizes.root)
    return total


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
