"""`quantkit ollama --gpu-layers`: the layers that fit, for each quantization its own."""

from pathlib import Path

import pytest

from quantkit.planning.layers import layers_that_fit
from quantkit.publish.ollama.modelfile import parse_modelfile
from tests.cli.test_ollama import NAME, quantkit
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wide model of six layers in two types: a few hundred kilobytes a layer."""
    here = tmp_path_factory.mktemp("layers")
    tiny_llama(here / "model", variant="llama3", hidden=512, intermediate=2048, layers=6)
    words = ("gguf", here / "model", "-t", "q4_0", "-t", "q8_0", "--chat-template", "chatml", "-o", here, "--no-logits")
    assert quantkit(*words).code == 0
    return here / "model-GGUF"


def num_gpu(folder: Path, name: str) -> object:
    return dict(parse_modelfile((folder / name).read_text()).parameters)["num_gpu"]


def test_more_memory_holds_more_layers_and_a_smaller_type_at_least_as_many(folder: Path) -> None:
    rooms = [500_000_000 + 8_000_000 * step for step in range(24)]
    small, large = (
        [layers_that_fit(folder / f"model-{kind}.gguf", n_ctx=4096, vram=room) for room in rooms]
        for kind in ("Q4_0", "Q8_0")
    )
    assert small == sorted(small) and large == sorted(large)
    assert all(a >= b for a, b in zip(small, large, strict=True))
    assert layers_that_fit(folder / "model-Q8_0.gguf", n_ctx=4096, vram=1 << 40) == 7
    assert layers_that_fit(folder / "model-Q8_0.gguf", n_ctx=4096, vram=1 << 20) == 0
    assert len(set(large)) > 2, "between none and all there are some"


def test_each_quantization_gets_its_own_number(folder: Path, tmp_path: Path) -> None:
    answer = quantkit("ollama", folder, *NAME, "--size", "1b", "-o", tmp_path, "--gpu-layers", "auto", "--vram", "80G")
    assert answer.code == 0, answer.stderr
    assert num_gpu(tmp_path, "Modelfile") == num_gpu(tmp_path, "Modelfile.q8_0") == 7
    assert "num_gpu 7 fits 80 GB with num_ctx 4096, by the plan" in answer.stderr
    assert num_gpu(tmp_path, "Modelfile.gpu") == 999
    tight = quantkit(
        "ollama", folder, *NAME, "--size", "1b", "-o", tmp_path, "--num-gpu", "auto", "--vram", "100M", "-f"
    )
    assert tight.code == 0 and num_gpu(tmp_path, "Modelfile") == 0


def test_all_layers_and_the_former_name_of_the_option(folder: Path, tmp_path: Path) -> None:
    words = ("ollama", folder, *NAME, "--size", "1b", "-o", tmp_path)
    assert quantkit(*words, "--gpu-layers", "all").code == 0 and num_gpu(tmp_path, "Modelfile") == 999
    assert quantkit(*words, "--num-gpu", "3", "-f").code == 0 and num_gpu(tmp_path, "Modelfile") == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--num-gpu", "auto", "--vram", "eight"), "--vram 'eight' is not a size"),
        (("--num-gpu", "some"), "write auto, all, or a number"),
        (("--vram", "8G"), "give both"),
        (("--num-gpu", "12", "--vram", "8G"), "give both"),
    ],
)
def test_contradicting_gpu_options_are_one_sentence(folder: Path, words: tuple[str, ...], sentence: str) -> None:
    answer = quantkit("ollama", folder, *NAME, "--dry-run", *words)
    assert answer.code == 2 and sentence in answer.sentence
