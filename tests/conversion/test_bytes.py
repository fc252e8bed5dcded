"""Every type's bytes against llama.cpp's own quantizer, fed with the unquantized file."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from quantkit.gguf.file_types import FILE_TYPES
from quantkit.imatrix.file import load_imatrix, write_imatrix
from tests.helpers.command import quantkit
from tests.helpers.oracle import Job, run_jobs
from tests.helpers.tiny import tiny_llama

# One checkpoint a trait: permuted heads and grouped queries, tied embedding and rows no K-quant fits, stacked experts.
SHAPES = {
    "llama3": ("llama3", "f16", 2, 256),
    "smollm2": ("smollm2", "bf16", 2, 512),
    "mixtral": ("mixtral", "f32", 1, 256),
}
"""Name -> variant, type of the weights, layers, width of the feed-forward network."""
# rows of the checkpoints here are not whole blocks of Q1_0
PLAIN = [name for name, kind in FILE_TYPES.items() if not kind.needs_imatrix and name != "q1_0"]
ALL = [name for name in FILE_TYPES if name != "q1_0"]
# ggml searches its IQ1 and IQ2 grids for 20 seconds a process before the first row: those take part in test-full only.
QUICK = [name for name in PLAIN if not name.startswith("iq")]


def convert(checkpoint: Path, out: Path, types: list[str], *more: str | Path) -> dict[str, Path]:
    """All `types` of a checkpoint in one command; type -> file."""
    options = [word for name in types for word in ("-t", name)]
    answer = quantkit("gguf", checkpoint, *options, "-o", out, "--no-logits", *more)
    assert answer.code == 0, answer.stderr
    folder = out / f"{checkpoint.name}-GGUF"
    return {name: folder / f"{checkpoint.name}-{FILE_TYPES[name].label}.gguf" for name in types}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in GGUFReader(path).tensors}


def a_random_imatrix(file: Path, source: Path) -> None:
    """Positive importance for every matrix of the GGUF `source`; per expert where experts are stacked."""
    rng = np.random.default_rng(7)
    sums, counts = {}, {}
    for tensor in GGUFReader(source).tensors:
        shape = [int(n) for n in tensor.shape]
        if len(shape) < 2 or tensor.name == "token_embd.weight":
            continue
        experts = shape[2] if len(shape) > 2 else 1
        sums[tensor.name] = (rng.gamma(1.0, 1.0, (experts, shape[0])) * 64).astype(np.float32)
        counts[tensor.name] = np.full(experts, 64, dtype=np.float32)
    write_imatrix(file, sums, counts, datasets=["random"], chunk_size=64, chunks=1)


@pytest.fixture(scope="module", params=SHAPES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    variant, dtype, layers, intermediate = SHAPES[request.param]
    folder = tmp_path_factory.mktemp(request.param) / request.param
    made = tiny_llama(folder, variant=variant, dtype=dtype, layers=layers, intermediate=intermediate, vocab=512)
    return made, dtype


@pytest.fixture(scope="module")
def unquantized(checkpoint: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, dtype = checkpoint
    return convert(folder, tmp_path_factory.mktemp("unquantized"), [dtype])[dtype]


def test_every_file_without_imatrix_equals_llama_cpps_whole(
    checkpoint: tuple[Path, str], unquantized: Path, tmp_path: Path
) -> None:
    ours = convert(checkpoint[0], tmp_path / "ours", PLAIN)
    jobs = [Job(str(unquantized), str(tmp_path / f"{name}.gguf"), FILE_TYPES[name].ftype) for name in PLAIN]
    for name, result in zip(PLAIN, run_jobs(jobs), strict=True):
        assert result.code == 0, result.log
        assert sha256(ours[name]) == sha256(tmp_path / f"{name}.gguf"), name


@pytest.mark.parametrize("types", [QUICK, pytest.param(ALL, marks=pytest.mark.full)], ids=["quick", "all"])
def test_every_tensor_with_imatrix_equals_llama_cpps(
    types: list[str], checkpoint: tuple[Path, str], unquantized: Path, tmp_path: Path
) -> None:
    a_random_imatrix(tmp_path / "imatrix.gguf", unquantized)
    ours = convert(checkpoint[0], tmp_path / "ours", types, "--imatrix", tmp_path / "imatrix.gguf")
    values = load_imatrix(tmp_path / "imatrix.gguf").values
    jobs = [Job(str(unquantized), str(tmp_path / f"{n}.gguf"), FILE_TYPES[n].ftype, imatrix=values) for n in types]
    for name, result in zip(types, run_jobs(jobs), strict=True):
        assert result.code == 0, result.log
        assert tensors(ours[name]) == tensors(tmp_path / f"{name}.gguf"), name


def test_types_asked_for_single_tensors_are_llama_cpps_too(
    checkpoint: tuple[Path, str], unquantized: Path, tmp_path: Path
) -> None:
    from gguf import GGMLQuantizationType as T

    words = ["--tensor-type", "ffn_down=q8_0", "--tensor-type", r"blk\.0\.attn_v=q5_1"]
    words += ["--output-type", "q5_0", "--embedding-type", "q4_1"]
    ours = convert(checkpoint[0], tmp_path / "ours", ["q4_0", "q4_k_m"], *words)
    pure = convert(checkpoint[0], tmp_path / "pure", ["q4_0"], "--pure")["q4_0"]
    mixed = {
        "output_type": int(T.Q5_0),
        "embedding_type": int(T.Q4_1),
        "tensor_types": [("ffn_down", int(T.Q8_0)), (r"blk\.0\.attn_v", int(T.Q5_1))],
    }
    jobs = [Job(str(unquantized), str(tmp_path / f"{n}.gguf"), FILE_TYPES[n].ftype, **mixed) for n in ours]
    jobs.append(Job(str(unquantized), str(tmp_path / "pure.gguf"), FILE_TYPES["q4_0"].ftype, pure=True))
    for result in run_jobs(jobs):
        assert result.code == 0, result.log
    for name, path in ours.items():
        assert sha256(path) == sha256(tmp_path / f"{name}.gguf"), name
    assert sha256(pure) == sha256(tmp_path / "pure.gguf")


def test_a_gguf_source_is_requantized_to_llama_cpps_bytes(unquantized: Path, tmp_path: Path) -> None:
    answer = quantkit("gguf", unquantized, "-t", "q8_0", "-t", "q4_k_m", "-o", tmp_path, "--name", "again")
    assert answer.code == 0, answer.stderr
    eight = tmp_path / "again-GGUF" / "again-Q8_0.gguf"
    refused = quantkit("gguf", eight, "-t", "q4_0", "-o", tmp_path)
    assert refused.code == 1
    assert "--allow-requantize" in refused.sentence
    answer = quantkit("gguf", eight, "-t", "q4_0", "-o", tmp_path, "--allow-requantize", "--name", "twice")
    assert answer.code == 0, answer.stderr
    jobs = [
        Job(str(unquantized), str(tmp_path / "q8_0.gguf"), FILE_TYPES["q8_0"].ftype),
        Job(str(unquantized), str(tmp_path / "q4_k_m.gguf"), FILE_TYPES["q4_k_m"].ftype),
        Job(str(eight), str(tmp_path / "q4_0.gguf"), FILE_TYPES["q4_0"].ftype, allow_requantize=True),
    ]
    for result in run_jobs(jobs):
        assert result.code == 0, result.log
    assert sha256(eight) == sha256(tmp_path / "q8_0.gguf")
    assert sha256(tmp_path / "again-GGUF" / "again-Q4_K_M.gguf") == sha256(tmp_path / "q4_k_m.gguf")
    assert sha256(tmp_path / "twice-GGUF" / "twice-Q4_0.gguf") == sha256(tmp_path / "q4_0.gguf")
