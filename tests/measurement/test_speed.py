import time
from pathlib import Path

import pytest

from quantkit.errors import CheckpointError, QuantkitError
from quantkit.measurement.load_options import LoadOptions
from quantkit.measurement.speed import SpeedTests, measure_speed
from tests.helpers.kills import descendants
from tests.helpers.tiny import tiny_llama
from tests.measurement.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llama(tmp_path_factory.mktemp("model"), dtype="f32", variant="mistral")
    return write_tiny_gguf(folder, folder / "tiny.gguf")


def test_both_rates_come_with_an_error_and_fit_into_the_time_it_took(tiny: Path) -> None:
    started = time.perf_counter()
    speeds = measure_speed(tiny, tests=SpeedTests(n_prompt=128, n_generate=64, repetitions=4))
    seconds = time.perf_counter() - started
    assert speeds.prompt.error is not None and speeds.generation.error is not None
    assert speeds.prompt.error > 0 and speeds.generation.error > 0
    assert 4 * (128 / speeds.prompt.value + 64 / speeds.generation.value) < seconds


def test_a_batch_of_tokens_is_faster_than_one_after_the_other(tiny: Path) -> None:
    """A factor of ten; a machine with other work can stop the batch for longer than it takes."""
    for _ in range(10):
        speeds = measure_speed(tiny, tests=SpeedTests(n_prompt=256, n_generate=64, repetitions=2))
        if speeds.prompt.value > speeds.generation.value:
            return
    pytest.fail(f"{speeds.prompt.value:.0f} tokens/s of a batch, {speeds.generation.value:.0f} one after the other")


def test_a_row_of_the_report_has_every_part_and_no_error_of_a_single_run(tiny: Path) -> None:
    row = measure_speed(tiny, LoadOptions(gpu_layers=0, n_threads=1), SpeedTests(600, 3, 1)).document()
    assert set(row.pop("prompt")) == set(row.pop("generation")) == {"value"}
    assert row == {
        "gpu_layers": 0,
        "threads": 1,
        "repetitions": 1,
        "prompt_tokens": 600,
        "generated_tokens": 3,
    }


def test_a_broken_file_is_one_sentence_and_leaves_no_process(tiny: Path, tmp_path: Path) -> None:
    before = descendants()
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(tiny.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.1.attn_Q.weight"))
    with pytest.raises(
        QuantkitError, match=r"bad\.gguf: llama\.cpp could not load the file: .*blk\.1\.attn_q"
    ) as caught:
        measure_speed(bad)
    assert "\n" not in str(caught.value)
    bad.write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="it ends early"):
        measure_speed(bad)
    assert descendants() == before


def test_a_run_that_takes_too_long_is_stopped(tiny: Path) -> None:
    with pytest.raises(QuantkitError, match=r"did not finish in 0\.2 seconds"):
        measure_speed(tiny, tests=SpeedTests(n_prompt=8192), timeout=0.2)
