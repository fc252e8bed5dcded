"""The same bytes whatever the number of threads: GGUF, AWQ, GPTQ and the importance matrix, dense and with experts."""

import hashlib
from pathlib import Path

import pytest

import quantkit
from quantkit.outputs.calibration import CalibrationRequest
from tests.families.expected import write_checkpoint
from tests.helpers.tiny import tiny_llama

TEXT = "The same sums in the same order give the same bytes.\n" * 40


def bytes_of(source: Path, output: Path, threads: int) -> dict[str, str]:
    """sha256 of every file of a conversion, but of the record of when and where it was made."""
    (output.parent / "text.txt").write_text(TEXT)
    calibration = CalibrationRequest(text=str(output.parent / "text.txt"), samples=6, seq_len=40)
    options = quantkit.ConvertOptions(group_size=-1, calibration=calibration, threads=threads, logits=False)
    assert not quantkit.convert(source, ["awq", "gptq", "imatrix", "q4_0", "q2_k"], output, options).failed
    return {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name != "quantkit.json"
    }


@pytest.mark.usefixtures("blas_of_many_threads")
@pytest.mark.parametrize(
    ("model", "counts"),
    [
        ("llama3", (1, 7)),
        pytest.param("llama3", (1, 2, 3), marks=pytest.mark.full),
        ("mixtral", (1, 7)),
        ("qwen2moe-fused-no-biases", (1, 7)),
    ],
)
def test_bytes_do_not_depend_on_the_number_of_threads(model: str, counts: tuple[int, ...], tmp_path: Path) -> None:
    if model == "llama3":
        # of widths that OpenBLAS, left to itself, cuts differently for each number of threads
        source = tiny_llama(tmp_path / "model", variant="llama3", hidden=576, intermediate=1000, layers=1)
    else:
        source = write_checkpoint(model, tmp_path / "model")
    one, *others = (bytes_of(source, tmp_path / str(threads), threads) for threads in counts)
    assert len(one) > 10
    assert all(other == one for other in others)
