"""The hub for real: huggingface_hub's own client against a small hub on the loopback interface, through HF_ENDPOINT."""

import contextlib
import errno
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from tests.checkpoint.files import CONFIG
from tests.checkpoint.hub_client import opened
from tests.helpers.command import quantkit
from tests.helpers.environment import environment
from tests.helpers.hub_server import Drop, Hub, Repo, closed_port, running_hub

REPO = "some-org/Tiny-Llama"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"layers.{n}.weight": rng.standard_normal((256, 512)).astype(np.float32) for n in range(4)}


def _files() -> dict[str, bytes]:
    arrays = list(_arrays().items())
    parts = dict(zip(SHARDS, (dict(arrays[:2]), dict(arrays[2:])), strict=True))
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    small = {
        "config.json": json.dumps(CONFIG).encode(),
        "generation_config.json": b"{}",
        "tokenizer.json": b"{}",
        "tokenizer.model": b"sp",
        "chat_template.jinja": b"{{ messages }}",
        "LICENSE.txt": b"free",
        "README.md": b"# Tiny",
        "model.safetensors.index.json": json.dumps(index).encode(),
    }
    ignored = {
        "pytorch_model.bin": bytes(5000),
        "consolidated.safetensors": bytes(5000),
        "modeling_tiny.py": b"raise SystemExit",
        "onnx/model.onnx": bytes(5000),
        "original/tokenizer.model": b"x",
    }
    return {**small, **{file: save(part) for file, part in parts.items()}, **ignored}


FILES = _files()
WANTED = sorted(set(FILES) - {"pytorch_model.bin", "consolidated.safetensors", "modeling_tiny.py"})
WANTED = [name for name in WANTED if "/" not in name]
DATA = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in _arrays().items()}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        running.repos[REPO] = Repo(dict(FILES))
        yield running


class Client:
    """quantkit with a hub cache of its own, in this process or a new one; its standard error must stay silent."""

    def __init__(self, endpoint: str, home: Path) -> None:
        self.endpoint, self.home = endpoint, home

    def settings(self, more: dict[str, str] | None) -> dict[str, str]:
        ours = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {**ours, **(more or {})}

    def open(self, source: str = REPO, variables: dict[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
        errors = io.StringIO()
        with environment(self.settings(variables)), contextlib.redirect_stderr(errors):
            result = opened({"source": source, **arguments})
        assert errors.getvalue() == ""
        return result

    def open_in_process(self, variables: dict[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        done = subprocess.run(
            [sys.executable, "-m", "tests.checkpoint.hub_client", json.dumps({"source": REPO, **arguments})],
            env={**kept, **self.settings(variables)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def refusal(self, source: str = REPO, **arguments: Any) -> str:
        result = self.open(source, **arguments)
        assert result.get("hub"), result
        message: str = result["message"]
        assert "\n" not in message and "http.client" not in message and message.count(". ") == 0, message
        return message


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    return Client(hub.endpoint, tmp_path / "home")


def test_a_repository_is_fetched_into_the_standard_cache_with_only_the_files_it_takes(hub: Hub, client: Client) -> None:
    result = client.open_in_process()
    assert (result["name"], result["repo_id"]) == ("Tiny-Llama", REPO)
    assert result["revision"] == hub.repos[REPO].commit
    assert result["files"] == WANTED
    assert f"hub/models--some-org--Tiny-Llama/snapshots/{result['revision']}" in result["folder"]
    assert result["data"] == DATA
    requested = {served.path.rpartition("/")[2] for served in hub.requests}
    assert not requested & {"pytorch_model.bin", "consolidated.safetensors", "modeling_tiny.py", "model.onnx"}

    total = sum(len(FILES[shard]) for shard in SHARDS)
    steps = result["steps"]
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    assert {step[2] for step in steps} == {total}
    assert steps[-1] == [SHARDS[1], total, total]

    before = len(hub.requests)
    again = client.open()
    assert again["data"] == DATA
    assert not [s for s in hub.requests[before:] if s.path.endswith(".safetensors")], "the cache was not used"

    offline = client.open(offline=True)
    assert (offline["data"], offline["revision"]) == (DATA, result["revision"])
    count = len(hub.requests)
    assert client.open_in_process(variables={"HF_HUB_OFFLINE": "1"})["data"] == DATA
    assert len(hub.requests) == count, "offline mode spoke to the hub"

    unreachable = Client(closed_port(), client.home)
    assert unreachable.open()["data"] == DATA, "a complete cache serves when there is no network"


def test_headers_only_fetches_headers_by_range_and_no_weights(hub: Hub, client: Client) -> None:
    result = client.open(headers_only=True)
    assert result["tensors"] == {name: [256, 512] for name in DATA}
    assert "weights" in result["reading"] and "not downloaded" in result["reading"]
    assert set(result["files"]) == set(WANTED) - set(SHARDS)
    for shard in SHARDS:
        (length,) = struct.unpack("<Q", FILES[shard][:8])
        assert hub.sent(f"/store/{REPO}/{shard}") == 8 + length
        assert result["header_sha256"][shard] == hashlib.sha256(FILES[shard][8 : 8 + length]).hexdigest()
    store = [served for served in hub.requests if "/store/" in served.path]
    assert {served.range for served in store} >= {"bytes=0-7"}
    assert all(served.status == 206 for served in store)

    fetched = client.open()
    assert fetched["data"] == DATA and fetched["header_sha256"] == result["header_sha256"]


def test_a_server_that_ignores_ranges_still_gives_right_headers(hub: Hub, client: Client) -> None:
    hub.ignore_ranges = True
    result = client.open(headers_only=True)
    for shard in SHARDS:
        (length,) = struct.unpack("<Q", FILES[shard][:8])
        assert result["header_sha256"][shard] == hashlib.sha256(FILES[shard][8 : 8 + length]).hexdigest()


def test_an_absurd_remote_header_length_is_refused_after_eight_bytes(hub: Hub, client: Client) -> None:
    files = {"config.json": FILES["config.json"], "model.safetensors": struct.pack("<Q", 2**60) + bytes(100_000)}
    hub.repos[REPO] = Repo(files)
    result = client.open(headers_only=True)
    assert result["error"] == "CheckpointError" and str(2**60) in result["message"]
    assert hub.sent("/model.safetensors") == 8


def test_a_remote_shard_shorter_than_its_header_says_is_refused_without_being_fetched(hub: Hub, client: Client) -> None:
    cut = FILES[SHARDS[1]][:-1000]
    hub.repos[REPO] = Repo({**FILES, SHARDS[1]: cut})
    result = client.open(headers_only=True)
    assert "truncated" in result["message"] and SHARDS[1] in result["message"]
    assert hub.sent(f"/store/{REPO}/{SHARDS[1]}") < 2000


def test_a_quantized_repository_is_refused_before_its_weights_are_fetched(hub: Hub, client: Client) -> None:
    config = json.dumps({**CONFIG, "quantization_config": {"quant_method": "awq"}}).encode()
    hub.repos[REPO] = Repo({**FILES, "config.json": config})
    result = client.open()
    assert result["error"] == "UnsupportedError" and "awq" in result["message"]
    assert not [served for served in hub.requests if served.path.endswith(".safetensors")]


def test_revisions_are_found_by_name_and_by_commit_and_a_wrong_one_is_named(hub: Hub, client: Client) -> None:
    hub.repos[REPO].revisions = ("main", "v1.5", "refs/pr/3")
    commit = hub.repos[REPO].commit
    for revision in ("v1.5", commit):
        assert client.open(f"{REPO}@{revision}", headers_only=True)["revision"] == commit
    message = client.refusal(f"{REPO}@v2")
    assert "'v2'" in message and REPO in message


def test_a_repository_that_does_not_exist_is_said_to(client: Client) -> None:
    message = client.refusal("some-org/nothing-here")
    assert "some-org/nothing-here" in message and "check the name" in message


@pytest.mark.parametrize("token", [None, "hf_stranger"])
def test_a_gated_repository_names_its_page_and_the_login_command(hub: Hub, client: Client, token: str | None) -> None:
    hub.repos[REPO].gated, hub.repos[REPO].tokens = True, ("hf_friend",)
    message = client.refusal(token=token)
    assert "gated" in message and "hf auth login" in message and f"{hub.endpoint}/{REPO}" in message


def test_a_token_opens_a_gated_repository_and_is_never_shown_to_the_file_store(hub: Hub, client: Client) -> None:
    hub.repos[REPO].gated, hub.repos[REPO].tokens = True, ("hf_friend",)
    assert client.open(token="hf_friend", headers_only=True)["tensors"]
    assert client.open(variables={"HF_TOKEN": "hf_friend"})["data"] == DATA
    store = [served for served in hub.requests if "/store/" in served.path]
    assert store and {served.host for served in store} == {"localhost"}
    assert {served.authorization for served in store} == {None}


def test_a_token_the_hub_does_not_know_is_said_to_be_refused(client: Client) -> None:
    message = client.refusal(token="hf_invalid")
    assert "credentials" in message and "hf auth login" in message and "hf_invalid" not in message


def test_a_private_repository_looks_like_a_missing_one_and_the_login_is_named(hub: Hub, client: Client) -> None:
    hub.repos[REPO].tokens = ("hf_friend",)
    message = client.refusal()
    assert "check the name" in message and "hf auth login" in message


def test_a_connection_dropped_in_the_middle_of_a_shard_is_resumed_where_it_broke(hub: Hub, client: Client) -> None:
    array = np.arange(6_000_000, dtype=np.float32).reshape(6000, 1000)
    weights = save({"w.weight": array})
    hub.repos[REPO] = Repo({"config.json": FILES["config.json"], "model.safetensors": weights})
    hub.drops["model.safetensors"] = Drop(after=23_000_000)
    result = client.open()
    assert result["data"] == {"w.weight": hashlib.sha256(array.tobytes()).hexdigest()}
    # huggingface_hub writes pieces of 10 MiB, so the two whole ones are kept and the rest is asked for again.
    ranges = [served.range for served in hub.requests if served.path == f"/store/{REPO}/model.safetensors"]
    assert ranges == [None, f"bytes={20 * 2**20}-"]
    steps = [done for _, done, _ in result["steps"]]
    assert {0, 10 * 2**20, 20 * 2**20, len(weights)} <= set(steps) and steps == sorted(steps)


def test_a_connection_reset_in_the_middle_of_a_shard_is_tried_again(hub: Hub, client: Client) -> None:
    hub.drops[SHARDS[0]] = Drop(after=600_000, reset=True)
    assert client.open()["data"] == DATA


def test_a_connection_that_keeps_breaking_is_given_up_and_finished_files_are_kept(hub: Hub, client: Client) -> None:
    hub.drops[SHARDS[1]] = Drop(after=1000, times=100, reset=True)
    message = client.refusal()
    assert SHARDS[1] in message and "dropped" in message and "finished files are kept" in message
    hub.drops.clear()
    before = hub.sent(f"/store/{REPO}/{SHARDS[0]}")
    assert client.open()["data"] == DATA
    assert hub.sent(f"/store/{REPO}/{SHARDS[0]}") == before, "a finished shard was fetched again"


def test_dropped_and_refused_header_requests_are_tried_again(hub: Hub, client: Client) -> None:
    hub.drops[SHARDS[0]] = Drop(after=20)
    hub.failures[SHARDS[1]] = 1
    assert set(client.open(headers_only=True)["tensors"]) == set(DATA)


def test_offline_without_a_cache_and_with_a_half_filled_one_each_get_a_sentence(hub: Hub, client: Client) -> None:
    message = client.refusal(offline=True)
    assert "offline" in message and REPO in message
    assert client.refusal(variables={"HF_HUB_OFFLINE": "1"}) == message
    assert not hub.requests
    client.open(headers_only=True)
    message = client.refusal(offline=True)
    assert "not complete" in message and SHARDS[0] in message


def test_weights_larger_than_the_free_disk_are_refused_before_a_byte_is_fetched(hub: Hub, client: Client) -> None:
    hub.repos[REPO].stated_sizes = {SHARDS[1]: 10**18}
    message = client.refusal()
    assert "B free" in message and "HF_HUB_CACHE" in message
    assert not [served for served in hub.requests if "/store/" in served.path]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "is full"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot be written"),
        (OSError("Consistency check failed: file should be of size 5 but has size 4"), "dropped"),
        (RuntimeError("Data processing error: CAS service error\nbacktrace"), "CAS service error"),
    ],
)
def test_a_failure_below_the_hub_client_is_one_sentence(error: Exception, words: str) -> None:
    from quantkit.checkpoint.hub_errors import explain

    message = str(explain(error, REPO, None, SHARDS[0], Path("/cache")))
    assert words in message and "\n" not in message


def test_no_network_is_said_at_once(tmp_path: Path) -> None:
    endpoint = closed_port()
    result = Client(endpoint, tmp_path).open()
    assert result["hub"] and endpoint in result["message"] and "check the network" in result["message"]
    assert result["seconds"] < 10


def test_an_existing_folder_wins_over_a_hub_id_of_the_same_name(
    hub: Hub, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.checkpoint import open_checkpoint
    from tests.checkpoint.files import single

    single(tmp_path / REPO)
    monkeypatch.chdir(tmp_path)
    with open_checkpoint(REPO) as checkpoint:
        assert checkpoint.repo_id is None
    assert not hub.requests


def test_a_repository_of_pickles_cannot_be_listed_by_headers(hub: Hub, client: Client) -> None:
    hub.repos[REPO] = Repo({"config.json": FILES["config.json"], "pytorch_model.bin": bytes(100)})
    assert "pytorch_model.bin" in client.refusal(headers_only=True)
    assert hub.sent("/pytorch_model.bin") == 0


@pytest.mark.parametrize(
    ("missing", "words"), [("config.json", "no config.json"), (SHARDS[0], SHARDS[0]), (None, "GGUF")]
)
def test_a_repository_without_what_it_needs_says_what(
    hub: Hub, client: Client, missing: str | None, words: str
) -> None:
    kept = {name: data for name, data in FILES.items() if name != missing}
    hub.repos[REPO] = Repo(kept if missing else {"config.json": FILES["config.json"], "tiny-q4_0.gguf": b"GGUF"})
    result = client.open(headers_only=True)
    assert words in result["message"] and "\n" not in result["message"]
    assert not [served for served in hub.requests if "/store/" in served.path]


def test_a_cache_folder_of_ones_own_is_used(hub: Hub, client: Client, tmp_path: Path) -> None:
    result = client.open(cache_dir=tmp_path / "mine")
    assert result["folder"].startswith(str(tmp_path / "mine"))
    assert not (client.home / "hub").exists()


def test_a_hub_id_longer_than_the_hub_allows_is_one_sentence_offline_too(tmp_path: Path) -> None:
    answer = quantkit("awq", f"ORG/{400 * 'n'}", "--offline", "-o", tmp_path)
    assert answer.code == 1 and "neither an existing folder nor a valid hub id" in answer.sentence
