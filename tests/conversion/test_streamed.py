"""--stream against strict hubs on the loopback interface: equal bytes, every byte once, whatever breaks on the way."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from tests.helpers.command import Answer, quantkit
from tests.helpers.hub_server import Drop, Hub, Repo, closed_port, running_hub
from tests.helpers.modelscope_server import modelscope_handler
from tests.helpers.tiny import tiny_llama

REPO = "some-org/Tiny"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
CALIBRATED = ("--samples", "8", "--seq-len", "32", "--raw", "--group-size", "32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(
        tmp_path_factory.mktemp("source") / "Tiny", variant="llama3", hidden=128, intermediate=256, layers=3, shards=2
    )


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with running_hub() as running:
        running.repos[REPO] = Repo({path.name: path.read_bytes() for path in folder.iterdir()})
        yield running


def environment(hub: Hub, home: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home / "home"), "HF_HUB_OFFLINE": "0"}


def stream(hub: Hub, output: Path, *words: str | Path) -> Answer:
    return quantkit(
        "convert",
        REPO,
        "--stream",
        "--no-logits",
        "--format",
        "json",
        "-o",
        output,
        *words,
        env=environment(hub, output),
    )


def local(folder: Path, output: Path, *words: str | Path) -> None:
    answer = quantkit("convert", folder, "--no-logits", "-o", output, *words)
    assert answer.code == 0, answer.stderr


def outputs(folder: Path) -> dict[str, bytes]:
    """The weights of every output below `folder`, by their paths."""
    files = [*folder.glob("*-*/*.gguf"), *folder.glob("*-*/*.safetensors"), *folder.glob("*-imatrix.gguf")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def sent_twice(hub: Hub, start: int = 0) -> int:
    """Bytes of weight files that the store sent more than once; asserts that it sent all others once."""
    again = 0
    for shard in SHARDS:
        end = 0
        for first, last in sorted(hub.stored(shard)):
            assert first <= end, f"bytes {end}..{first} of {shard} were never sent"
            again += max(0, min(end, last) - first)
            end = max(end, last)
        assert end == len(hub.repos[REPO].files[shard])
    return again


def document(answer: Answer) -> dict[str, Any]:
    assert answer.code == 0, answer.stderr
    result: dict[str, Any] = json.loads(answer.stdout)
    return result


@pytest.mark.parametrize(
    "types",
    [
        ("-t", "q8_0", "-t", "q4_0", "--no-imatrix"),
        ("-t", "fp8"),
        ("-t", "fp8", "-t", "nvfp4a16", "-t", "q4_0", "--no-imatrix"),
        ("-t", "awq", "-t", "fp8", "-t", "q4_0", *CALIBRATED),
    ],
    ids=["gguf", "fp8", "folders and gguf", "calibrated"],
)
def test_a_streamed_conversion_has_the_same_bytes_and_fetches_each_byte_once(
    hub: Hub, folder: Path, tmp_path: Path, types: tuple[str, ...]
) -> None:
    result = document(stream(hub, tmp_path / "streamed", *types))
    local(folder, tmp_path / "local", *types)
    assert outputs(tmp_path / "streamed") == outputs(tmp_path / "local")
    assert sent_twice(hub) == 0
    assert result["streamed"]["bytes"] == sum(hub.sent(shard) for shard in SHARDS)
    assert result["streamed"]["bytes_again"] == 0
    assert not list((tmp_path / "streamed" / "home").rglob("*.safetensors")), "weights went to the disk"


def test_a_streamed_conversion_with_error_feedback_rounds_the_weights_of_the_embedding_alone(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    types = ("-t", "q4_0", "--solver", "feedback", "-t", "imatrix", *CALIBRATED[:5])
    document(stream(hub, tmp_path / "streamed", *types))
    local(folder, tmp_path / "local", *types)
    assert sent_twice(hub) == 0
    streamed, once_more = (tensors(next((tmp_path / out).rglob("*Q4_0.gguf"))) for out in ("streamed", "local"))
    different = [name for name, data in streamed.items() if not np.array_equal(data, once_more[name])]
    assert different == ["token_embd.weight"]
    (record,) = json.loads(next((tmp_path / "streamed").rglob("quantkit.json")).read_text())["outputs"].values()
    assert "as it is downloaded" in record["feedback"]["without_feedback"]["token_embd.weight"]


def tensors(path: Path) -> dict[str, np.ndarray]:
    """The bytes of a GGUF's tensors."""
    return {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}


def test_logits_of_a_small_streamed_model_are_compared_from_memory(hub: Hub, tmp_path: Path) -> None:
    answer = quantkit(
        "gguf", REPO, "--stream", "-t", "q8_0", "-o", tmp_path, "--format", "json", env=environment(hub, tmp_path)
    )
    checks = {check["name"]: check["status"] for check in document(answer)["outputs"][0]["checks"]}
    assert checks["logits"] == "passed"
    assert sent_twice(hub) == 0


def test_the_summary_says_what_was_streamed(hub: Hub, tmp_path: Path) -> None:
    answer = quantkit("gguf", REPO, "--stream", "-t", "q8_0", "-o", tmp_path, env=environment(hub, tmp_path))
    assert answer.code == 0
    assert "streamed " in answer.stdout and "requests, each byte once" in answer.stdout


def _cut(hub: Hub) -> None:
    hub.drops[SHARDS[0]] = Drop(after=20_000, times=3)


def _expired(hub: Hub) -> None:
    hub.signed_uses = 2


def _busy(hub: Hub) -> None:
    hub.answers[SHARDS[1]] = [(429, {"Retry-After": "0"}), (503, {"Retry-After": "0"}), (500, {"Retry-After": "0"})]


def _slow(hub: Hub) -> None:
    hub.slow = 0.01


@pytest.mark.parametrize("fault", [_cut, _expired, _busy, _slow])
def test_a_fault_on_the_way_costs_no_byte(hub: Hub, folder: Path, tmp_path: Path, fault: Any) -> None:
    fault(hub)
    document(stream(hub, tmp_path / "streamed", "-t", "q8_0", "--no-imatrix"))
    local(folder, tmp_path / "local", "-t", "q8_0", "--no-imatrix")
    assert outputs(tmp_path / "streamed") == outputs(tmp_path / "local")
    assert sent_twice(hub) == 0


def test_a_run_that_the_hub_stopped_resumes_without_fetching_finished_tensors_again(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    hub.answers_left = 20
    answer = stream(hub, tmp_path / "streamed", "-t", "fp8")
    assert answer.code == 1 and "answered 409" in answer.sentence
    lines = (tmp_path / "streamed/Tiny-conversion.partial/journal").read_text().splitlines()
    finished = [line["tensor"].removeprefix("folders: ") for line in map(json.loads, lines) if "tensor" in line]
    assert finished
    before = {shard: len(hub.stored(shard)) for shard in SHARDS}
    hub.answers_left = None
    document(stream(hub, tmp_path / "streamed", "-t", "fp8"))
    local(folder, tmp_path / "local", "-t", "fp8")
    assert outputs(tmp_path / "streamed") == outputs(tmp_path / "local")
    sent_twice(hub)
    for shard in SHARDS:
        data = hub.repos[REPO].files[shard]
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        for name in set(finished) & header.keys():
            start, stop = (8 + length + offset for offset in header[name]["data_offsets"])
            again = [span for span in hub.stored(shard)[before[shard] :] if span[0] < stop and start < span[1]]
            assert not again, f"{name} was finished and fetched again"


def test_what_does_not_stay_in_memory_is_fetched_again_and_counted(hub: Hub, tmp_path: Path) -> None:
    from quantkit.checkpoint import Access, open_checkpoint
    from tests.helpers.environment import environment as variables

    with variables(environment(hub, tmp_path)), open_checkpoint(REPO, Access(stream=True)) as checkpoint:
        streamed = checkpoint.streamed
        assert streamed is not None
        streamed.memory = 1
        headers = streamed.traffic.bytes
        first, second = list(checkpoint.tensors.values())[:2]
        data = checkpoint.read_rows(first.name, 0, first.n_rows)
        checkpoint.read_rows(second.name, 0, second.n_rows)
        assert streamed.traffic.again == 0
        assert (checkpoint.read_rows(first.name, 0, first.n_rows) == data).all()
        traffic = streamed.traffic
    assert traffic.again == first.nbytes
    assert traffic.bytes == headers + 2 * first.nbytes + second.nbytes == sum(hub.sent(shard) for shard in SHARDS)


@pytest.mark.parametrize("kind", ["etag", "shorter"])
def test_a_file_that_changes_between_two_ranges_ends_the_run_in_one_sentence(
    hub: Hub, tmp_path: Path, kind: str
) -> None:
    if kind == "etag":
        hub.etags[SHARDS[0]] = ["first", "first", "other"]
    else:
        hub.answers[SHARDS[0]] = [(416, {})]
    answer = stream(hub, tmp_path, "-t", "q8_0", "--no-imatrix")
    assert answer.code == 1
    assert f"{SHARDS[0]} of {REPO} changed on the server since it was opened" in answer.sentence
    assert "--force" in answer.sentence and not outputs(tmp_path)


def test_a_server_that_ignores_ranges_is_refused(tmp_path: Path) -> None:
    # larger than what is read and dropped at the start of a file
    folder = tiny_llama(tmp_path / "Tiny", variant="llama3", hidden=1024)
    with running_hub() as hub:
        hub.repos[REPO] = Repo({path.name: path.read_bytes() for path in folder.iterdir()})
        hub.ignore_ranges = True
        answer = stream(hub, tmp_path / "out", "-t", "q8_0", "--no-imatrix")
    assert answer.code == 1 and "ignores range requests" in answer.sentence and "--stream" in answer.sentence


def test_pickles_folders_and_offline_runs_are_refused(hub: Hub, folder: Path, tmp_path: Path) -> None:
    files = {name: data for name, data in hub.repos[REPO].files.items() if "safetensors" not in name}
    hub.repos[REPO] = Repo({**files, "pytorch_model.bin": bytes(100)})
    answer = stream(hub, tmp_path, "-t", "q8_0", "--no-imatrix")
    assert answer.code == 1 and "pytorch_model.bin, a pickle" in answer.sentence
    answer = quantkit("gguf", folder, "--stream", "-o", tmp_path)
    assert answer.code == 2 and "is on the disk" in answer.sentence
    answer = quantkit("gguf", REPO, "--stream", "--offline", "-o", tmp_path)
    assert answer.code == 2 and "--stream needs the network" in answer.sentence


def test_a_private_repository_and_no_network_are_one_sentence_each(hub: Hub, tmp_path: Path) -> None:
    hub.repos[REPO].tokens = ("secret",)
    answer = stream(hub, tmp_path, "-t", "q8_0", "--no-imatrix")
    assert answer.code == 1 and "hf auth login" in answer.sentence
    gone = {"HF_ENDPOINT": closed_port(), "HF_HOME": str(tmp_path / "home")}
    answer = quantkit("gguf", REPO, "--stream", "-o", tmp_path, env=gone)
    assert answer.code == 1 and "check the network" in answer.sentence


def test_modelscope_is_streamed_too(folder: Path, tmp_path: Path) -> None:
    with running_hub(modelscope_handler) as hub:
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        hub.repos[REPO] = Repo(files, revisions=("master",))
        hub.signed_uses = 3
        env = {"MODELSCOPE_ENDPOINT": hub.endpoint, "MODELSCOPE_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        words = ("-t", "q8_0", "--no-imatrix", "--no-logits")
        answer = quantkit("convert", f"modelscope:{REPO}", "--stream", *words, "-o", tmp_path / "streamed", env=env)
        assert answer.code == 0, answer.stderr
        assert sent_twice(hub) == 0
    local(folder, tmp_path / "local", "-t", "q8_0", "--no-imatrix")
    assert outputs(tmp_path / "streamed") == outputs(tmp_path / "local")


def test_a_closed_source_ends_the_requests_that_wait_for_a_further_try(hub: Hub, tmp_path: Path) -> None:
    from quantkit.checkpoint import Access, open_checkpoint
    from tests.helpers.environment import environment as variables

    with variables(environment(hub, tmp_path)):
        checkpoint = open_checkpoint(REPO, Access(stream=True))
        streamed, tensors = checkpoint.streamed, list(checkpoint.tensors.values())
        assert streamed is not None
        hub.answers[SHARDS[0]] = hub.answers[SHARDS[1]] = [(503, {"Retry-After": "100"})] * 50
        streamed.expect(tensors)
        reader = threading.Thread(target=lambda: suppressed(checkpoint.read_rows, tensors[0].name, 0, 1))
        reader.start()
        time.sleep(0.2)
        checkpoint.close()
        reader.join(timeout=60)
        assert not reader.is_alive()


def suppressed(call: Any, *arguments: Any) -> None:
    with contextlib.suppress(Exception):
        call(*arguments)


def test_a_quantized_source_is_streamed_part_by_part(folder: Path, tmp_path: Path) -> None:
    local(folder, tmp_path, "-t", "mlx-4bit")
    source = (tmp_path / "Tiny-MLX-4bit").rename(tmp_path / "Tiny")
    with running_hub() as hub:
        hub.repos[REPO] = Repo({path.name: path.read_bytes() for path in source.iterdir()})
        result = document(stream(hub, tmp_path / "streamed", "-t", "q8_0", "--no-imatrix"))
    local(source, tmp_path / "local", "-t", "q8_0", "--no-imatrix")
    assert outputs(tmp_path / "streamed") == outputs(tmp_path / "local")
    assert result["streamed"]["bytes"] == sum(path.stat().st_size for path in source.glob("*.safetensors"))
