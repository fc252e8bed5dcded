"""llama.cpp's own quantizer as the oracle: real `llama_model_quantize`, in a process of its own.

A GGUF with bad metadata makes llama.cpp abort the whole process, hence the subprocess. One subprocess takes the jobs of
all tests, one list after the other; after an abort the next list starts another.
"""

import atexit
import ctypes
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

REPOSITORY = Path(__file__).resolve().parents[2]
# compilers for ARM fuse multiplications and additions in ggml, so its bytes differ there (docs/dev/platforms.md)
against_ggml = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="ggml of x86-64 is the oracle; here the recorded bytes are"
)


@dataclass
class Job:
    """One call of llama_model_quantize. `imatrix` is tensor name -> float32 values; paths are strings."""

    src: str
    dst: str
    ftype: int
    n_threads: int = 2
    pure: bool = False
    output_type: int | None = None
    embedding_type: int | None = None
    tensor_types: list[tuple[str, int]] = field(default_factory=list)
    allow_requantize: bool = False
    leave_output: bool = False
    dry_run: bool = False
    imatrix: Mapping[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Result:
    """What llama.cpp answered: its return code (0 is success) and everything it logged."""

    code: int
    log: str


class OracleError(AssertionError):
    """llama.cpp refused or aborted; the message is its log."""


def llama_quantize(
    src: Path,
    dst: Path,
    ftype: int,
    *,
    imatrix: Mapping[str, np.ndarray] | None = None,
    n_threads: int = 2,
    pure: bool = False,
    output_type: GGMLQuantizationType | None = None,
    embedding_type: GGMLQuantizationType | None = None,
    tensor_types: Sequence[tuple[str, GGMLQuantizationType]] = (),
    allow_requantize: bool = False,
    leave_output: bool = False,
    dry_run: bool = False,
) -> str:
    """Quantize `src` into `dst` with llama.cpp and return its log; raises OracleError with the log if it fails."""
    job = Job(
        src=str(src),
        dst=str(dst),
        ftype=int(ftype),
        n_threads=n_threads,
        pure=pure,
        output_type=None if output_type is None else int(output_type),
        embedding_type=None if embedding_type is None else int(embedding_type),
        tensor_types=[(pattern, int(kind)) for pattern, kind in tensor_types],
        allow_requantize=allow_requantize,
        leave_output=leave_output,
        dry_run=dry_run,
        imatrix=imatrix,
    )
    (result,) = run_jobs([job])
    if result.code != 0:
        raise OracleError(result.log)
    return result.log


class _Child:
    """The subprocess. A request is a line with two paths: the jobs and the log to write; an empty line answers it."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.oracle"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def run(self, jobs: Path, log: Path) -> str | None:
        """None when all jobs were run; else what the process that died wrote to stderr."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([str(jobs), str(log)]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer == "done\n":
            return None
        self.close()
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", "replace")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


_children: list[_Child] = []


@atexit.register
def close() -> None:
    """End the subprocess."""
    while _children:
        _children.pop().close()


def run_jobs(jobs: Sequence[Job]) -> list[Result]:
    """All jobs in order. A job that llama.cpp refuses has code != 0; an abort raises OracleError."""
    with tempfile.TemporaryDirectory(prefix="oracle-") as folder:
        matrices: dict[int, str] = {}
        records: list[dict[str, Any]] = []
        for job in jobs:
            record = asdict(Job(**{**vars(job), "imatrix": None}))
            if job.imatrix is not None:
                # many jobs may share one importance matrix: it is stored once
                if id(job.imatrix) not in matrices:
                    matrices[id(job.imatrix)] = str(Path(folder, f"imatrix{len(matrices)}.npz"))
                    np.savez(matrices[id(job.imatrix)], **{name: np.asarray(v) for name, v in job.imatrix.items()})
                record["imatrix"] = matrices[id(job.imatrix)]
            records.append(record)
        jobs_file, log_file = Path(folder, "jobs.json"), Path(folder, "log.jsonl")
        jobs_file.write_text(json.dumps(records))
        if not _children:
            _children.append(_Child())
        try:
            errors = _children[0].run(jobs_file, log_file)
        except BaseException:
            # a test's time is over: the answer to these jobs would be taken for that to the next ones
            close()
            raise
        lines = log_file.read_text().splitlines() if log_file.exists() else []
        results = [Result(**json.loads(line)) for line in lines]
        if errors is not None:
            _children.clear()
            raise OracleError(f"llama.cpp aborted in job {len(results)} of {len(jobs)}:\n{errors}")
        assert len(results) == len(jobs)
        return results


_MIX_LINE = re.compile(r"^\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\w+), (.*)$", re.MULTILINE)
_NEW_TYPE = re.compile(r"MiB \((\w+)\)|converting to (\w+) \.\.")
_FALLBACK = re.compile(r"^warning: (\S+) +- ncols", re.MULTILINE)


def mix_from_log(log: str) -> dict[str, GGMLQuantizationType]:
    """Tensor name -> the type llama.cpp gave it, in llama.cpp's order."""
    mix = {}
    for name, old, rest in _MIX_LINE.findall(log):
        new = _NEW_TYPE.search(rest)
        kind = (new[1] or new[2]) if new else old
        mix[name] = GGMLQuantizationType[kind.upper()]
    return mix


def fallbacks_from_log(log: str) -> set[str]:
    """The tensors whose shape forced another type."""
    return set(_FALLBACK.findall(log))


def will_require_imatrix(log: str) -> bool:
    """Whether a dry run announced that the real one needs an importance matrix."""
    return "will require an imatrix" in log


def write_sparse_gguf(
    path: Path,
    kvs: Mapping[str, Any],
    tensors: Sequence[tuple[str, tuple[int, ...], GGMLQuantizationType]],
) -> None:
    """A GGUF whose tensor data is a hole: full size to llama.cpp, a few kB on disk.

    `kvs`: key -> str, bool, int (stored as uint32), float (float32) or a list of one of them; it must hold
    "general.architecture". `tensors`: (name, shape in numpy order (..., rows, cols), type).
    """
    writer = gguf.GGUFWriter(path, str(kvs["general.architecture"]), use_temp_file=False)
    for key, value in kvs.items():
        if key == "general.architecture":
            continue
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_array(key, value)
    size = 0
    for name, shape, kind in tensors:
        elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        n_bytes = int(np.prod(shape)) // elements * block_bytes
        stored_shape = (*shape[:-1], shape[-1] // elements * block_bytes) if elements > 1 else shape
        dtype = np.dtype(np.uint8) if elements > 1 else np.dtype(np.float16 if block_bytes == 2 else np.float32)
        writer.add_tensor_info(name, stored_shape, dtype, n_bytes, raw_dtype=kind)
        size += -(-n_bytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-path.stat().st_size // 32) * 32
    os.truncate(path, start + size)


def model_metadata(
    arch: str,
    *,
    n_layer: int,
    n_embd: int,
    n_ff: int,
    n_head: int,
    n_head_kv: int,
    n_vocab: int = 32000,
    n_expert: int = 0,
    n_expert_used: int = 2,
) -> dict[str, Any]:
    """The hyperparameters llama.cpp wants before it quantizes a model of the Llama, Falcon, Qwen... kind."""
    kvs: dict[str, Any] = {
        "general.architecture": arch,
        f"{arch}.context_length": 2048,
        f"{arch}.embedding_length": n_embd,
        f"{arch}.block_count": n_layer,
        f"{arch}.feed_forward_length": n_ff,
        f"{arch}.attention.head_count": n_head,
        f"{arch}.attention.head_count_kv": n_head_kv,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.attention.layer_norm_epsilon": 1e-5,
        f"{arch}.vocab_size": n_vocab,
    }
    if n_expert:
        kvs[f"{arch}.expert_count"] = n_expert
        kvs[f"{arch}.expert_used_count"] = n_expert_used
    return kvs


def model_tensors(
    *,
    n_layer: int,
    n_embd: int,
    n_ff: int,
    n_head: int,
    n_head_kv: int,
    n_vocab: int = 32000,
    n_expert: int = 0,
    tied: bool = False,
    fused_qkv: bool = False,
    gated: bool = True,
    dtype: GGMLQuantizationType = GGMLQuantizationType.F16,
) -> list[tuple[str, tuple[int, ...], GGMLQuantizationType]]:
    """The tensors of such a model, unsorted: `fused_qkv` as in Falcon, `gated=False` leaves ffn_gate out."""
    kv_rows = n_embd // n_head * n_head_kv
    f32 = GGMLQuantizationType.F32
    tensors: list[tuple[str, tuple[int, ...], GGMLQuantizationType]] = [
        ("token_embd.weight", (n_vocab, n_embd), dtype),
        ("output_norm.weight", (n_embd,), f32),
    ]
    if not tied:
        tensors.append(("output.weight", (n_vocab, n_embd), dtype))
    for layer in range(n_layer):
        block = f"blk.{layer}"
        if fused_qkv:
            tensors.append((f"{block}.attn_qkv.weight", (n_embd + 2 * kv_rows, n_embd), dtype))
        else:
            tensors.append((f"{block}.attn_q.weight", (n_embd, n_embd), dtype))
            tensors.append((f"{block}.attn_k.weight", (kv_rows, n_embd), dtype))
            tensors.append((f"{block}.attn_v.weight", (kv_rows, n_embd), dtype))
        tensors.append((f"{block}.attn_output.weight", (n_embd, n_embd), dtype))
        tensors.append((f"{block}.attn_norm.weight", (n_embd,), f32))
        tensors.append((f"{block}.ffn_norm.weight", (n_embd,), f32))
        suffix, experts = ("_exps", (n_expert,)) if n_expert else ("", ())
        if n_expert:
            tensors.append((f"{block}.ffn_gate_inp.weight", (n_expert, n_embd), f32))
        if gated:
            tensors.append((f"{block}.ffn_gate{suffix}.weight", (*experts, n_ff, n_embd), dtype))
        tensors.append((f"{block}.ffn_up{suffix}.weight", (*experts, n_ff, n_embd), dtype))
        tensors.append((f"{block}.ffn_down{suffix}.weight", (*experts, n_embd, n_ff), dtype))
    return tensors


def _main() -> None:
    import llama_cpp

    answers = os.dup(1)
    os.dup2(2, 1)

    # a params struct that is not this libllama's would read the flags at the wrong places: compare a default
    defaults = llama_cpp.llama_model_quantize_default_params()
    if (defaults.ftype, defaults.max_buf_size) != (7, 8 << 30):
        raise RuntimeError("llama_cpp's llama_model_quantize_params does not match its libllama")

    pieces: list[str] = []

    @llama_cpp.llama_log_callback
    def collect(_level: int, text: bytes, _user_data: Any) -> None:
        pieces.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    for line in sys.stdin:
        jobs_file, log_file = map(Path, json.loads(line))
        with log_file.open("w") as log:
            for record in json.loads(jobs_file.read_text()):
                pieces.clear()
                code = _quantize(llama_cpp, record)
                log.write(json.dumps({"code": code, "log": "".join(pieces)}) + "\n")
                log.flush()
        os.write(answers, b"done\n")


def _quantize(llama_cpp: Any, record: dict[str, Any]) -> int:
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = record["n_threads"]
    params.ftype = record["ftype"]
    params.pure = record["pure"]
    params.allow_requantize = record["allow_requantize"]
    params.quantize_output_tensor = not record["leave_output"]
    params.dry_run = record["dry_run"]
    if record["output_type"] is not None:
        params.output_tensor_type = record["output_type"]
    if record["embedding_type"] is not None:
        params.token_embedding_type = record["embedding_type"]
    keep: list[Any] = []  # ctypes does not keep what a pointer field points at
    if record["imatrix"] is not None:
        with np.load(record["imatrix"]) as stored:
            values = {name: np.ascontiguousarray(stored[name], dtype=np.float32).ravel() for name in stored.files}
        entries = (llama_cpp.llama_model_imatrix_data * (len(values) + 1))()
        for entry, (name, data) in zip(entries, values.items(), strict=False):
            entry.name = name.encode()
            entry.data = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = data.size
        keep += [values, entries]
        params.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    if record["tensor_types"]:
        overrides = (llama_cpp.llama_model_tensor_override * (len(record["tensor_types"]) + 1))()
        for override, (pattern, kind) in zip(overrides, record["tensor_types"], strict=False):
            override.pattern = pattern.encode()
            override.type = kind
        keep.append(overrides)
        params.tt_overrides = ctypes.cast(overrides, ctypes.POINTER(llama_cpp.llama_model_tensor_override))
    code: int = llama_cpp.llama_model_quantize(record["src"].encode(), record["dst"].encode(), ctypes.byref(params))
    del keep
    return code


if __name__ == "__main__":
    _main()
