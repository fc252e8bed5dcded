"""ModelScope for real: the HTTP client against a small ModelScope on the loopback interface."""

import contextlib
import hashlib
import io
import pickle
import struct
import time
from collections.abc import Iterator
from http.cookiejar import Cookie
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.hub_client import opened
from tests.checkpoint.test_hub import DATA, FILES, SHARDS, WANTED
from tests.helpers.environment import environment
from tests.helpers.hub_server import Drop, Hub, Repo, closed_port, running_hub
from tests.helpers.modelscope_server import modelscope_handler

REPO = "some-org/Tiny-Llama"
SOURCE = f"modelscope:{REPO}"
TOTAL = sum(len(FILES[shard]) for shard in SHARDS)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub(modelscope_handler) as running:
        running.repos[REPO] = Repo(dict(FILES), revisions=("master", "v1.0"))
        yield running


class Client:
    """quantkit with a ModelScope cache of its own; its standard error must stay silent."""

    def __init__(self, endpoint: str, home: Path) -> None:
        self.endpoint, self.home = endpoint, home

    @property
    def settings(self) -> dict[str, str]:
        return {
            "HF_ENDPOINT": closed_port(),
            "HF_HOME": str(self.home / "hf"),
            "MODELSCOPE_ENDPOINT": self.endpoint,
            "MODELSCOPE_CACHE": str(self.home / "cache"),
            "MODELSCOPE_HOME": str(self.home / "settings"),
        }

    def open(self, source: str = SOURCE, variables: dict[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
        errors = io.StringIO()
        with environment({**self.settings, **(variables or {})}), contextlib.redirect_stderr(errors):
            result = opened({"source": source, **arguments})
        assert errors.getvalue() == ""
        return result

    def refusal(self, source: str = SOURCE, **arguments: Any) -> str:
        result = self.open(source, **arguments)
        assert result.get("hub"), result
        message: str = result["message"]
        assert "\n" not in message and message.count(". ") == 0, message
        return message

    @property
    def folder(self) -> Path:
        """The cache folder of the model."""
        return self.home / "cache" / "models" / "some-org--Tiny-Llama"


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    return Client(hub.endpoint, tmp_path)


def _sent(hub: Hub) -> int:
    return sum(hub.sent(f"/store/{REPO}/{shard}") for shard in SHARDS)


def test_a_model_is_fetched_into_the_clients_cache_with_only_the_files_it_takes(hub: Hub, client: Client) -> None:
    result = client.open()
    assert (result["name"], result["repo_id"], result["data"]) == ("Tiny-Llama", SOURCE, DATA)
    assert result["revision"] == hub.repos[REPO].commit
    assert result["files"] == WANTED
    assert result["folder"] == str(client.folder / "snapshots" / result["revision"])
    assert list(result["steps"][-1]) == [SHARDS[1], TOTAL, TOTAL]

    before = len(hub.requests)
    assert client.open()["data"] == DATA
    assert not [served for served in hub.requests[before:] if "/store/" in served.path], "the cache was not used"
    hub.settle()
    count = len(hub.requests)
    offline = client.open(offline=True)
    assert (offline["data"], offline["revision"]) == (DATA, result["revision"])
    hub.settle()
    assert len(hub.requests) == count, "offline mode spoke to the hub"
    assert Client(closed_port(), client.home).open()["data"] == DATA, "a complete cache serves without a network"


def test_headers_only_fetches_headers_by_range_and_no_weights(hub: Hub, client: Client) -> None:
    result = client.open(headers_only=True)
    assert result["tensors"] == {name: [256, 512] for name in DATA}
    for shard in SHARDS:
        (length,) = struct.unpack("<Q", FILES[shard][:8])
        assert hub.sent(f"/store/{REPO}/{shard}") == 8 + length


def test_a_list_without_a_commit_is_known_by_its_content(hub: Hub, client: Client) -> None:
    hub.repos[REPO].names_commit = False
    first = client.open()["revision"]
    assert len(first) == 40 and client.open(offline=True)["revision"] == first
    hub.repos[REPO].files["README.md"] = b"# Another"
    before = _sent(hub)
    second = client.open()
    assert second["revision"] != first and second["data"] == DATA
    assert _sent(hub) == before + TOTAL


def test_revisions_are_found_by_name_and_a_wrong_one_is_named(hub: Hub, client: Client) -> None:
    assert client.open(f"{SOURCE}@v1.0")["data"] == DATA
    message = client.refusal(f"{SOURCE}@nowhere")
    assert "no revision 'nowhere'" in message and "master, v1.0" in message


def test_a_model_that_does_not_exist_is_said_to_and_the_token_is_named(client: Client) -> None:
    message = client.refusal("modelscope:some-org/Nothing")
    assert "some-org/Nothing is not a model on ModelScope" in message and "MODELSCOPE_API_TOKEN" in message


def test_a_private_model_opens_with_a_token_that_the_store_never_sees(hub: Hub, client: Client) -> None:
    hub.repos[REPO].tokens = ("secret",)
    assert "MODELSCOPE_API_TOKEN" in client.refusal()
    assert client.open(variables={"MODELSCOPE_API_TOKEN": "secret"})["data"] == DATA
    store = [served for served in hub.requests if "/store/" in served.path]
    assert store and not any(served.authorization for served in store)
    assert all(served.status != 400 for served in store), "the store was shown a cookie"
    message = client.open(variables={"MODELSCOPE_API_TOKEN": "invalid"})["message"]
    assert "refused the credentials" in message and "MODELSCOPE_API_TOKEN" in message


class RunsCode:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def _cookie(value: str, expires: int) -> Cookie:
    return Cookie(
        0, "m_session_id", value, None, False, "modelscope.cn", True, False, "/", True, False, expires, False, None,
        None, {},
    )  # fmt: skip


@pytest.mark.parametrize(("seconds", "opens"), [(3600, True), (-3600, False)])
def test_the_login_of_the_client_is_used_until_it_expires(hub: Hub, client: Client, seconds: int, opens: bool) -> None:
    requests = pytest.importorskip("requests.cookies", reason="the client's cookie jar is a class of requests")
    jar = requests.RequestsCookieJar()
    jar.set_cookie(_cookie("secret", int(time.time()) + seconds))
    path = client.home / "settings" / "credentials" / "cookies"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(jar))
    hub.repos[REPO].tokens = ("secret",)
    assert ("data" in client.open()) is opens


def test_a_cookie_file_that_names_code_does_not_run_it(
    hub: Hub, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = client.home / "settings" / "credentials" / "cookies"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(RunsCode()))
    assert client.open()["data"] == DATA
    assert not Path("ran").exists()


def test_a_connection_dropped_in_the_middle_of_a_shard_is_resumed_where_it_broke(hub: Hub, client: Client) -> None:
    hub.drops[SHARDS[0]] = Drop(after=300_000)
    assert client.open()["data"] == DATA
    assert hub.stored(SHARDS[0]) == [(0, 300_000), (300_000, len(FILES[SHARDS[0]]))]


def test_an_unfinished_download_continues_in_the_next_run(hub: Hub, client: Client) -> None:
    half = len(FILES[SHARDS[0]]) // 2
    digest = hashlib.sha256(FILES[SHARDS[0]]).hexdigest()
    partial = client.folder / "unfinished" / digest
    partial.parent.mkdir(parents=True)
    partial.write_bytes(FILES[SHARDS[0]][:half])
    assert client.open()["data"] == DATA
    assert hub.stored(SHARDS[0]) == [(half, len(FILES[SHARDS[0]]))]


def test_a_file_of_another_hash_than_the_list_states_is_refused_and_not_kept(hub: Hub, client: Client) -> None:
    repo, another = hub.repos[REPO], hashlib.sha256(b"another").hexdigest()
    repo.stated_hashes[SHARDS[0]] = repo.linked_hashes[SHARDS[0]] = another
    message = client.refusal()
    assert SHARDS[0] in message and "wrong sha256" in message
    assert not list(client.folder.rglob(SHARDS[0])) and not list((client.folder / "unfinished").iterdir())


def test_a_file_that_was_replaced_since_the_list_is_refused_before_its_bytes(hub: Hub, client: Client) -> None:
    hub.repos[REPO].linked_hashes[SHARDS[1]] = hashlib.sha256(b"another").hexdigest()
    result = client.open()
    assert result["error"] == "ReadError" and "changed on the server" in result["message"]
    assert not hub.stored(SHARDS[1])


@pytest.mark.parametrize("layout", ["models/some-org--Tiny-Llama/snapshots/master", "hub/models/some-org/Tiny-Llama"])
def test_files_that_modelscopes_own_client_fetched_are_used(hub: Hub, client: Client, layout: str) -> None:
    folder = client.home / "cache" / layout
    folder.mkdir(parents=True)
    (folder / SHARDS[0]).write_bytes(FILES[SHARDS[0]])
    (folder / SHARDS[1]).write_bytes(FILES[SHARDS[1]][:-1] + b"x")  # of the right size, but another file
    assert client.open()["data"] == DATA
    assert not hub.stored(SHARDS[0]) and hub.stored(SHARDS[1])


def test_a_list_with_a_path_out_of_the_folder_is_refused(hub: Hub, client: Client) -> None:
    hub.repos[REPO].files["../outside"] = b"x"
    assert "'../outside'" in client.refusal()


def test_no_network_is_said_at_once(tmp_path: Path) -> None:
    endpoint = closed_port()
    result = Client(endpoint, tmp_path).open()
    assert result["hub"] and endpoint in result["message"] and "check the network" in result["message"]
    assert result["seconds"] < 10


def test_another_kind_of_server_is_named(hub: Hub, tmp_path: Path) -> None:
    with running_hub() as other:
        other.repos[REPO] = Repo(dict(FILES))
        message = Client(other.endpoint, tmp_path).refusal()
    assert "not a model on ModelScope" in message or "MODELSCOPE_ENDPOINT" in message


def test_offline_without_a_cache_is_one_sentence(client: Client) -> None:
    message = client.refusal(offline=True)
    assert "ModelScope cache" in message and "online" in message
