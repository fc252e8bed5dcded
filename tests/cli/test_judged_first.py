"""A model that cannot be converted is told from its config.json: nothing else of it is fetched from the hub."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command import Answer, quantkit
from tests.helpers.hub_server import Hub, Repo, running_hub
from tests.helpers.tiny import tiny_llama

REPO = "some-org/Tiny"
WEIGHTS = (".safetensors", ".index.json")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tiny_llama(tmp_path_factory.mktemp("source") / "model", variant="llama3", shards=2)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


def convert(hub: Hub, files: dict[str, bytes], folder: Path, **changes: Any) -> Answer:
    config = {**json.loads(files["config.json"]), **changes}
    hub.repos[REPO] = Repo({**files, "config.json": json.dumps(config).encode()})
    return quantkit("gguf", REPO, "-o", folder, "--no-logits", env=environment(hub, folder))


def environment(hub: Hub, folder: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}


def fetched(hub: Hub) -> set[str]:
    """Names of the files that were asked for."""
    return {served.path.rpartition("/")[2] for served in hub.requests if "/api/" not in served.path}


def test_a_model_that_can_be_converted_is_fetched(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    assert convert(hub, files, tmp_path).code == 0
    assert [name for name in fetched(hub) if name.endswith(WEIGHTS)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["Olmo2ForSequenceClassification"]},
            "Olmo2ForSequenceClassification of config.json is not supported yet, nor by llama.cpp's converter b11549;"
            " if a newer llama.cpp runs it, add a family file such as quantkit/families/olmo2.py",
        ),
        (
            {"architectures": ["GrokForCausalLM"]},
            "llama.cpp's converter b11549 reads it; for all else than a GGUF, add a family file such as"
            " quantkit/families/llama.py; for a GGUF, run pip install 'quantkit[converter]', then pass --converter"
            " pinned",
        ),
        (
            {"architectures": ["PLMForCausalLM"]},
            "reads it, but llama.cpp aborts on it with flash attention, its default",
        ),
        (
            {"architectures": ["Plamo2ForCausalLM"]},
            "reads it, but its file states no attention heads for the first layer, with which llama.cpp computes"
            " without end",
        ),
        ({"architectures": None, "model_type": "novel"}, "names no architecture"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "cannot express rope scaling 'longrope'"),
        ({"num_attention_heads": 5}, "does not divide by num_attention_heads 5"),
        (
            {"architectures": ["BloomForCausalLM"], "apply_residual_connection_post_layernorm": True},
            "apply_residual_connection_post_layernorm is true",
        ),
    ],
)
def test_a_model_that_cannot_be_costs_one_small_file(
    changes: dict[str, Any], words: str, hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    answer = convert(hub, files, tmp_path, **changes)
    assert answer.code == 1
    assert words in answer.sentence
    assert fetched(hub) == {"config.json"}
    assert not list(tmp_path.glob("*-GGUF"))


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("llama3", "model.layers.1.mlp.down_proj.weight"),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.3.w2.weight"),
    ],
)
@pytest.mark.parametrize("command", ["gguf", "awq"])
def test_a_missing_tensor_is_named_before_weights_are_downloaded(
    command: str, variant: str, name: str, hub: Hub, tmp_path: Path
) -> None:
    folder = tiny_llama(tmp_path / "model", variant=variant, hidden=64, intermediate=96)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    renamed = name.replace("layers.1", "layers.7").encode()
    sound = files["model.safetensors"]
    files["model.safetensors"] = sound.replace(name.encode(), renamed)
    hub.repos[REPO] = Repo(files)
    answer = quantkit(command, REPO, "-o", tmp_path, env=environment(hub, tmp_path))
    assert answer.code == 1 and f"tensor {name} is missing from the checkpoint" in answer.sentence
    assert hub.sent(".safetensors") == 8 + int.from_bytes(sound[:8], "little")


def test_an_unknown_tensor_is_named_before_weights_are_downloaded(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    with_unknown = {
        path: data.replace(b"layers.1.mlp.down_proj", b"layers.1.mlp.drown_pro") for path, data in files.items()
    }
    hub.repos[REPO] = Repo(with_unknown)
    answer = quantkit("gguf", REPO, "-o", tmp_path, env=environment(hub, tmp_path))
    assert answer.code == 1 and name in answer.sentence
    headers = (8 + int.from_bytes(data[:8], "little") for path, data in files.items() if path.endswith(".safetensors"))
    assert hub.sent(".safetensors") == sum(headers)


def test_it_is_said_offline_too(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    convert(hub, files, tmp_path, architectures=["GrokForCausalLM"])
    before = len(hub.requests)
    answer = quantkit("gguf", REPO, "--offline", "-o", tmp_path, env=environment(hub, tmp_path))
    assert "GrokForCausalLM of config.json is not supported yet" in answer.sentence
    assert len(hub.requests) == before


def test_a_folder_is_judged_before_its_weights_are_read(files: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({**json.loads(files["config.json"]), "architectures": ["GrokForCausalLM"]})
    )
    assert "GrokForCausalLM of config.json is not supported yet" in quantkit("gguf", folder, "-o", tmp_path).sentence
    shutil.rmtree(folder)
