"""Real weights: SmolLM2-135M, bf16, its tied embedding and its rows that no K-quant fits."""

import json
from pathlib import Path

from quantkit.gguf.file_types import FILE_TYPES
from tests.conversion.test_bytes import convert, sha256
from tests.helpers.command import quantkit_process
from tests.helpers.oracle import Job, run_jobs
from tests.helpers.real import smollm2_or_skip

TYPES = ["q4_0", "q2_k", "q4_k_m", "q8_0"]


def test_the_demos_four_files_are_llama_cpps_whole(tmp_path: Path) -> None:
    checkpoint = smollm2_or_skip()
    ours = convert(checkpoint, tmp_path / "ours", [*TYPES, "bf16"])
    jobs = [Job(str(ours["bf16"]), str(tmp_path / f"{name}.gguf"), FILE_TYPES[name].ftype) for name in TYPES]
    for name, result in zip(TYPES, run_jobs(jobs), strict=True):
        assert result.code == 0, result.log
        assert sha256(ours[name]) == sha256(tmp_path / f"{name}.gguf"), name


def test_real_weights_keep_their_logits(tmp_path: Path) -> None:
    answer = quantkit_process("gguf", smollm2_or_skip(), "-t", "q8_0", "-o", tmp_path, "--format", "json")
    assert answer.code == 0, answer.stderr
    document = json.loads(answer.stdout)
    assert document["outputs"][0]["logit_correlation"] > 0.995
    assert document["peak_memory_bytes"] < 400e6
