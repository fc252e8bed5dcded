"""Models with Gated DeltaNet at their published sizes: cache, states and compute buffer against llama.cpp's account."""

from pathlib import Path

import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.families import find_family
from quantkit.outputs.model import model_from_checkpoint
from quantkit.planning.context import Context
from quantkit.planning.memory import plan_memory
from tests.conversion.test_published_mix_delta import SHAPES
from tests.families.published import Published, write_sparse
from tests.helpers.oracle import write_sparse_gguf
from tests.planning.llama_memory import Job, measure
from tests.planning.models import read_model


def header(published: Published, folder: Path) -> Path:
    """The unquantized GGUF, with holes for weights and no vocabulary."""
    family, model = (
        find_family(published.config),
        model_from_checkpoint(open_checkpoint(str(write_sparse(published, folder / "model")))),
    )
    model.close()
    arch, keys = family.gguf_arch, family.keys(family.gguf_arch, family.sizes(published.config))
    record = {key.name: float(key.value) if key.kind == "f32" else key.value for key in keys}
    rows = next(tensor.shape[0] for tensor in model.tensors if tensor.name == "token_embd.weight")
    record |= {"general.architecture": arch, "tokenizer.ggml.model": "no_vocab", f"{arch}.vocab_size": rows}
    path = folder / "model.gguf"
    write_sparse_gguf(path, record, [(tensor.name, tensor.shape, tensor.type) for tensor in model.tensors])
    return path


@pytest.mark.parametrize(
    "published",
    [pytest.param(model, id=model.name, marks=() if "27B" in model.name else pytest.mark.full) for model in SHAPES],
)
def test_a_model_of_its_published_size_takes_what_llama_cpp_reserves(published: Published, tmp_path: Path) -> None:
    assert_memory_is_llama_cpps(header(published, tmp_path))


def assert_memory_is_llama_cpps(path: Path, *, counted_twice: str = "") -> None:
    """Cache, states, compute buffer and weights of a header, without flash attention and with a quantized cache too.

    `counted_twice`: a tensor that llama.cpp creates twice, which takes memory only where the file is not mapped.
    """
    shape, tensors = read_model(path)
    twice = sum(tensor.nbytes for tensor in tensors if tensor.name == counted_twice)
    jobs = [
        Job(str(path), n_ctx=n_ctx, flash=flash, kv=kv, no_alloc=True)
        for n_ctx, flash, kv in ((512, -1, "f16"), (4096, 0, "f16"), (32768, -1, "q8_0"))
    ]
    for job, measured in zip(jobs, measure(jobs), strict=True):
        context = Context(n_ctx=job.n_ctx, kv_type=job.kv, flash=False if job.flash == 0 else None)
        memory = plan_memory(shape, tensors, context).cpu
        assert memory.compute == pytest.approx(measured.compute, rel=0.001), job
        # llama.cpp logs two caches of a model with an indexer, each to a hundredth of a MiB
        assert memory.kv == pytest.approx(measured.kv, rel=0.001, abs=0.01 * (1 << 20)), job
        assert memory.weights + twice == pytest.approx(measured.weights, rel=0.001), job
