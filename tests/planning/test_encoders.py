"""The plan of encoders against llama.cpp's own account of its memory."""

from pathlib import Path

import pytest

from quantkit.errors import UnsupportedError
from quantkit.machine import Machine
from quantkit.measurement.load_options import LoadOptions
from quantkit.measurement.memory import loaded_memory
from quantkit.planning.context import Context
from quantkit.planning.memory import plan_memory
from quantkit.planning.phones import phone
from quantkit.planning.plan import PlanOptions, plan
from tests.families.expected import write_checkpoint
from tests.helpers.conversions import to_gguf
from tests.helpers.rpc_server import rpc
from tests.planning.llama_memory import Job, measure
from tests.planning.models import read_model

HUNDREDTH = 0.0051 * (1 << 20)
"""Half of the log's last digit, in bytes."""


@pytest.mark.parametrize(
    "name",
    [
        "bert",
        "bert-reranker",
        "bert-three-labels",
        "distilbert",
        "roberta",
        "roberta-reranker",
        "xlm-roberta",
        "nomic-bert",
        "nomic-bert-moe",
        "jina-bert",
        "modernbert",
        "modernbert-reranker",
        "embedding-gemma",
        "eurobert",
        "llama-embed",
        "llama-embed-llama3",
        "t5-encoder",
        "flan-t5-encoder",
        "umt5-encoder",
    ],
)
def test_the_compute_buffer_of_an_encoder_is_llama_cpps(name: str, tmp_path: Path) -> None:
    path = to_gguf(write_checkpoint(name, tmp_path / name), "f32", tmp_path)
    shape, tensors = read_model(path)
    jobs = [
        Job(str(path), n_ctx=n_ctx, flash=flash, n_batch=n_ctx, n_ubatch=n_ctx, embeddings=True)
        for n_ctx, flash in ((512, -1), (2048, 0), (2048, -1))
    ]
    for job, measured in zip(jobs, measure(jobs), strict=True):
        memory = plan_memory(shape, tensors, Context(n_ctx=job.n_ctx, flash=False if job.flash == 0 else None)).cpu
        assert memory.compute == pytest.approx(measured.compute, rel=0.001, abs=HUNDREDTH), job
        assert memory.kv == pytest.approx(measured.kv, abs=2 * HUNDREDTH)
        # llama.cpp makes a cache for some that do not use it
        assert (memory.kv == 0) == (not name.startswith("llama-embed") and "t5" not in name)


@pytest.mark.full
def test_each_device_takes_what_the_plan_says_for_any_number_of_layers(tmp_path: Path) -> None:
    made = rpc()
    path = to_gguf(write_checkpoint("bert", tmp_path / "bert"), "f32", tmp_path)
    shape, tensors = read_model(path)
    with pytest.MonkeyPatch.context() as patch, made.serving() as endpoint:
        patch.setenv("GGML_BACKEND_PATH", str(made.backend))
        # one layer stands for the output, which an encoder does not have
        for layers in range(2, shape.n_layer + 2):
            memory = loaded_memory(path, LoadOptions(gpu_layers=layers, rpc=[endpoint]), n_ctx=512)
            context = Context(n_ctx=512, gpu_layers=layers, op_offload=False)
            planned = plan_memory(shape, tensors, context, has_gpu=True)
            for ours, theirs in zip(planned.devices, memory.devices, strict=True):
                assert ours.weights == pytest.approx(theirs.weights, rel=0.01, abs=HUNDREDTH), (layers, ours)
                assert ours.compute == pytest.approx(theirs.compute, rel=0.02, abs=2 * HUNDREDTH), (layers, ours)


def test_a_plan_of_an_encoder_names_the_commands_that_give_embeddings(tmp_path: Path) -> None:
    folder = write_checkpoint("bert", tmp_path / "bert")
    options = PlanOptions(types=["q8_0"], machine=Machine(ram=4 << 30), bandwidth={"CPU": (1e10, "given")})
    result = plan(str(folder), options)
    _, embedding, server = result.commands()
    n_ctx = result.context.n_ctx
    assert embedding.startswith("llama-embedding -m ") and f"-c {n_ctx} " in embedding
    assert server.startswith("llama-server -m ") and "--embedding" in server
    # llama.cpp aborts if a text is longer than the physical batch
    assert all(command.endswith(f"-b {n_ctx} -ub {n_ctx}") for command in (embedding, server))
    assert result.rows[0].speed == 0 and not any("tokens/s" in note for note in result.notes())


def test_a_plan_of_a_reranker_names_the_server_that_reranks(tmp_path: Path) -> None:
    path = to_gguf(write_checkpoint("bert-reranker", tmp_path / "bert"), "f32", tmp_path)
    options = PlanOptions(machine=Machine(ram=4 << 30), bandwidth={"CPU": (1e10, "given")})
    *_, command = plan(str(path), options).commands()
    assert command.startswith("llama-server -m ")
    assert "--reranking" in command


def test_a_phone_plan_of_an_encoder_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint("bert", tmp_path / "bert")
    with pytest.raises(UnsupportedError, match="is an encoder, and --phone plans a chat model; use --ram instead"):
        plan(str(folder), PlanOptions(phone=phone("8G")))
