"""Calibration text from the hub: huggingface_hub's own client against a small hub on the loopback interface."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantkit.texts.dataset_name import Dataset, parse_dataset
from tests.helpers.environment import environment
from tests.helpers.hub_server import Hub, Repo, closed_port, running_hub
from tests.texts.dataset_client import read_dataset

FILES = {
    "README.md": b"# A dataset",
    "dataset_infos.json": b"{}",
    "data/train-00000-of-00002.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
    "data/train-00001-of-00002.jsonl": b'{"text": "three"}\n',
    "data/test-00000-of-00001.jsonl": b'{"text": "held out"}\n',
    "chats/train.json": json.dumps([{"messages": [{"role": "user", "content": "Hi"}]}]).encode(),
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        hub.repos["datasets/some-org/texts"] = Repo(FILES, revisions=("main", "v2"))
        hub.repos["datasets/some-org/pictures"] = Repo({"a.png": b"x", "README.md": b"y"})
        yield hub


def read(hub_endpoint: str, home: Path, source: str, *, offline: bool = False) -> dict[str, Any]:
    with environment({"HF_ENDPOINT": hub_endpoint, "HF_HOME": str(home), "HF_TOKEN": ""}):
        return read_dataset(source, offline=offline)


def read_in_process(hub_endpoint: str, home: Path, source: str) -> dict[str, Any]:
    variables = {**os.environ, "HF_ENDPOINT": hub_endpoint, "HF_HOME": str(home), "HF_TOKEN": ""}
    variables.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "tests.texts.dataset_client", source, "online"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_training_split_is_taken_unless_another_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    train = read_in_process(hub.endpoint, tmp_path, "some-org/texts")
    assert train["documents"] == [[{"role": "user", "content": "Hi"}], "one", "two", "three"]
    assert hub.sent("test-00000-of-00001.jsonl") == 0
    assert read(hub.endpoint, tmp_path, "some-org/texts:test")["documents"] == ["held out"]
    assert read(hub.endpoint, tmp_path, "some-org/texts@v2:data/train")["documents"] == ["one", "two", "three"]


def test_what_was_fetched_once_serves_offline_and_when_the_hub_is_away(hub: Hub, tmp_path: Path) -> None:
    first = read(hub.endpoint, tmp_path, "some-org/texts:data/train")
    assert read(hub.endpoint, tmp_path, "some-org/texts:data/train", offline=True) == first
    assert read(closed_port(), tmp_path, "some-org/texts:data/train") == first
    away = read(closed_port(), tmp_path / "empty", "some-org/texts")
    assert away["error"] == "UnreachableError" and "some-org/texts" in away["message"]
    assert (
        "is not in the hub cache" in read(hub.endpoint, tmp_path / "empty", "some-org/texts", offline=True)["message"]
    )


def test_what_a_dataset_lacks_is_said_with_what_it_has(hub: Hub, tmp_path: Path) -> None:
    assert (
        "no Parquet, JSON or text files (only .md, .png)"
        in read(hub.endpoint, tmp_path, "some-org/pictures")["message"]
    )
    assert (
        "has no file for split 'dev'; choose from chats/train.json"
        in read(hub.endpoint, tmp_path, "some-org/texts:dev")["message"]
    )
    missing = read(hub.endpoint, tmp_path, "some-org/nothing")
    assert missing["error"] == "HubError" and "datasets/some-org/nothing is neither" in missing["message"]


def test_a_dropped_connection_is_taken_up_again(hub: Hub, tmp_path: Path) -> None:
    hub.failures["data/test-00000-of-00001.jsonl"] = 1
    assert read(hub.endpoint, tmp_path, "some-org/texts:test")["documents"] == ["held out"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", Dataset("org/name", None, None)),
        ("org/name:test", Dataset("org/name", None, "test")),
        ("org/name@v1:wikitext-2-raw-v1/test", Dataset("org/name", "v1", "wikitext-2-raw-v1/test")),
        ("folder/text.txt", None),
        ("text.txt", None),
        ("/a/b", None),
    ],
)
def test_a_name_that_can_only_be_a_path_is_no_dataset(source: str, expected: Dataset | None) -> None:
    assert parse_dataset(source) == expected
