"""A draft takes its memory first: the model gets the layers that fit beside it."""

from pathlib import Path

import pytest

from quantkit.planning.context import Context
from quantkit.planning.draft import DraftMemory, draft_memory, mtp_bytes
from quantkit.planning.layers import placement_that_fits
from quantkit.planning.memory import GPU_OVERHEAD, plan_memory
from quantkit.planning.sizes import as_it_is
from quantkit.planning.sources import open_source
from tests.families.expected import write_checkpoint
from tests.helpers.command import quantkit
from tests.helpers.conversions import to_gguf
from tests.helpers.tiny import tiny_llama

CONTEXT = Context(n_ctx=2048)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("draft")
    for name, layers in (("large", 8), ("small", 2)):
        tiny_llama(folder / name, variant="llama3", hidden=512, intermediate=2048, layers=layers)
        assert quantkit("gguf", name, "-t", "q8_0", "--no-logits", cwd=folder).code == 0
    return {name: folder / f"{name}-GGUF" / f"{name}-Q8_0.gguf" for name in ("large", "small")}


def planned(path: Path, gpu_layers: int) -> int:
    """Bytes of the GPU without its overhead, by the plan of the file alone."""
    source = open_source(str(path))
    try:
        context = Context(n_ctx=2048, gpu_layers=gpu_layers)
        (gpu,) = plan_memory(source.shape, as_it_is(source).tensors, context, has_gpu=True).gpus
        return gpu.buffers
    finally:
        source.model.close()


def test_model_and_draft_together_fit_and_a_layer_more_does_not(files: dict[str, Path]) -> None:
    large, small = files["large"], files["small"]
    room = planned(large, 9) + GPU_OVERHEAD
    assert placement_that_fits(large, CONTEXT, [room]).gpu_layers == 9
    draft = draft_memory(large, small, CONTEXT, [room], mtp=False, count=3)
    assert draft == DraftMemory((planned(small, 3),), 0)
    layers = placement_that_fits(large, CONTEXT, [room], draft=draft).gpu_layers
    assert layers is not None and 0 < layers < 9
    both = GPU_OVERHEAD + planned(small, 3)
    assert planned(large, layers) + both <= room < planned(large, layers + 1) + both


def test_the_draft_is_on_the_largest_gpu_or_on_the_cpu(files: dict[str, Path]) -> None:
    large, small = files["large"], files["small"]
    size = planned(small, 3)
    assert draft_memory(large, small, CONTEXT, [1 << 30, 2 << 30], mtp=False, count=3) == DraftMemory((0, size), 1)
    assert draft_memory(large, small, CONTEXT, [size - 1], mtp=False, count=3) == DraftMemory((0,), None)


def test_an_mtp_layer_has_its_weights_a_cache_and_a_compute_buffer_and_states_are_kept(tmp_path: Path) -> None:
    model = to_gguf(write_checkpoint("qwen35", tmp_path / "qwen35"), "f32", tmp_path)
    source = open_source(str(model))
    try:
        layer = len(source.shape.trunk)
        weights = sum(tensor.nbytes for tensor in as_it_is(source).tensors if tensor.layer == layer)
        assert weights < mtp_bytes(source, CONTEXT) < 40 * weights
        # b11549: llama_memory_recurrent has 1 + n_rs_seq cells a sequence
        states = [size for size, kind in zip(_kv(source), source.shape.trunk, strict=False) if kind.is_recurrent]
    finally:
        source.model.close()
    one, four = (
        draft_memory(model, None, CONTEXT, [1 << 33, 1 << 33], mtp=True, count=count).taken for count in (1, 4)
    )
    assert states and four[0] - one[0] == four[1] - one[1] == 3 * sum(states)
    assert one[1] - one[0] > weights


def _kv(source: object) -> list[int]:
    from quantkit.planning.memory import kv_of_layers

    return kv_of_layers(source.shape, CONTEXT)  # type: ignore[attr-defined]
