"""Pushing for real: huggingface_hub's own client against the upload side of a small hub, through HF_ENDPOINT."""

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.environment import environment
from tests.helpers.hub_server import closed_port
from tests.helpers.upload_hub import PART, UploadHub, UploadRepo, running_upload_hub
from tests.publish.hub_client import pushed

REPO = "me/Tiny-GGUF"
CARD = b"---\nlicense: mit\ntags:\n- gguf\n---\n\n# Tiny\n"
SMALL = {"README.md": CARD, "quantkit.json": b"{}", "Modelfile": b"FROM ./Tiny-Q4_0.gguf\n"}
LARGE = {
    "Tiny-Q4_0.gguf": bytes(range(256)) * 200,
    "Tiny-Q8_0.gguf": bytes(range(255, -1, -1)) * (2 * PART // 256 + 100),
    "plots/memory.png": b"\x89PNG" + bytes(900),
}
FILES = {**SMALL, **LARGE}
NOBODYS = (
    "Tiny-Q2_K.gguf.partial",
    "Tiny-Q2_K.gguf.failed",
    "Tiny.journal.partial",
    "Tiny-calibration.partial/journal",
    "Tiny-calibration.partial/states",
    "README.md.bak",
    "README.md.bak2",
    "quantkit.json.bak",
    ".cache/huggingface/upload",
    ".env",
    "bake.journal",
)


@pytest.fixture
def hub() -> Iterator[UploadHub]:
    with running_upload_hub() as running:
        yield running
        assert running.faults == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "Tiny-GGUF"
    for name, data in {**FILES, **dict.fromkeys(NOBODYS, b"not yet")}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def settings(endpoint: str, folder: Path, token: str | None) -> dict[str, str]:
    ours = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder.parent / "home")}
    ours |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return ours if token is None else {**ours, "HF_TOKEN": token}


def child(endpoint: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of a new process that pushes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    words = json.dumps({"folder": str(folder), "repo": REPO})
    command = [sys.executable, "-m", "tests.publish.hub_client", words]
    return command, {**kept, **settings(endpoint, folder, "hf_writer")}


def push(endpoint: str, folder: Path, repo: str = REPO, token: str | None = "hf_writer", **options: Any) -> Any:
    errors = io.StringIO()
    with environment(settings(endpoint, folder, token)), contextlib.redirect_stderr(errors):
        answer = pushed(str(folder), repo, **options)
    assert errors.getvalue() == ""
    return answer


def test_a_folder_arrives_whole_in_one_commit_without_what_is_not_finished(hub: UploadHub, folder: Path) -> None:
    command, variables = child(hub.endpoint, folder)
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert answer["pushed"] == {name: len(data) for name, data in FILES.items()}
    repo = hub.repos[REPO]
    assert repo.files == FILES and not repo.private
    assert repo.commits == [sorted(FILES)] and repo.large == set(LARGE)
    assert answer["total"] == sum(map(len, FILES.values())) and answer["sent"] == answer["pushed"]


def test_what_the_hub_has_is_not_sent_again_and_what_changed_is(hub: UploadHub, folder: Path) -> None:
    push(hub.endpoint, folder)
    received = dict(hub.received)
    assert push(hub.endpoint, folder)["pushed"] == {}
    (folder / "Modelfile").write_bytes(SMALL["Modelfile"][::-1])  # of the same size
    changed = LARGE["Tiny-Q4_0.gguf"][::-1]
    (folder / "Tiny-Q4_0.gguf").write_bytes(changed)
    assert sorted(push(hub.endpoint, folder)["pushed"]) == ["Modelfile", "Tiny-Q4_0.gguf"]
    repo = hub.repos[REPO]
    assert repo.commits[1:] == [["Modelfile", "Tiny-Q4_0.gguf"]]
    assert repo.files["Tiny-Q4_0.gguf"] == changed
    assert {oid: count for oid, count in hub.received.items() if count != received.get(oid)} == {
        hashlib.sha256(changed).hexdigest(): len(changed)
    }


def test_a_push_killed_in_the_middle_goes_on_with_what_is_missing(hub: UploadHub, folder: Path) -> None:
    first, second = (hashlib.sha256(LARGE[name]).hexdigest() for name in ("Tiny-Q4_0.gguf", "Tiny-Q8_0.gguf"))
    hub.hold = second
    command, env = child(hub.endpoint, folder)
    running = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert hub.waiting.wait(60)
    running.send_signal(signal.SIGKILL)
    running.wait()
    hub.hold = None
    hub.release.set()
    assert hub.repos[REPO].files == {}  # nobody sees half of a folder
    answer = push(hub.endpoint, folder)
    assert hub.repos[REPO].files == FILES and len(answer["pushed"]) == len(FILES)
    assert hub.received[first] == len(LARGE["Tiny-Q4_0.gguf"])
    assert len(hub.repos[REPO].commits) == 1


def test_a_dry_run_names_the_files_and_asks_nobody(folder: Path) -> None:
    answer = push(closed_port(), folder, token=None, dry_run=True)
    assert answer["pushed"] == {name: len(data) for name, data in FILES.items()}


def test_private_makes_a_private_repository_and_refuses_a_public_one(hub: UploadHub, folder: Path) -> None:
    push(hub.endpoint, folder, private=True)
    assert hub.repos[REPO].private and hub.repos[REPO].files == FILES
    hub.repos["me/Open"] = UploadRepo(private=False)
    answer = push(hub.endpoint, folder, repo="me/Open", private=True)
    assert answer["error"] == "PublishError" and "me/Open exists and is public" in answer["sentence"]
    assert hub.repos["me/Open"].files == {}


def test_a_repository_that_the_token_may_write_to_but_not_create_is_pushed_to(hub: UploadHub, folder: Path) -> None:
    hub.repos[REPO] = UploadRepo(private=False)
    hub.refuse = [("/api/repos/create", 403, "You don't have the rights to create a model")]
    assert len(push(hub.endpoint, folder)["pushed"]) == len(FILES)


def test_nobody_logged_in_is_told_how_before_anything_is_asked(hub: UploadHub, folder: Path) -> None:
    answer = push(hub.endpoint, folder, token=None)
    assert answer == {
        "error": "PublishError",
        "sentence": "not logged in to the hub; run `hf auth login` with a token that can write, or set HF_TOKEN",
    }
    assert hub.requests == []


@pytest.mark.parametrize(
    ("refuse", "options", "words"),
    [
        (None, {"token": "hf_wrong"}, ("refused the token", "(401)", "hf auth login")),
        (None, {"repo": "others/Tiny"}, ("cannot write to others/Tiny", "403", "write access to others")),
        (("/commit/", 403, "Authorization error."), {}, ("cannot write to me/Tiny-GGUF", "Authorization error")),
        (("objects/batch", 403, "Private repository storage limit reached"), {}, ("no space", "limit reached")),
        (("objects/batch", 402, "Payment required"), {}, ("no space for me/Tiny-GGUF", "Payment required")),
        (
            ("/api/validate-yaml", 400, '"license" must be one of'),
            {},
            ("refuses the metadata", '"license" must'),
        ),
        (("/commit/", 400, "bad header"), {}, ("refused the push", "400", "bad header")),
        (("/paths-info/", 429, ""), {}, ("slow down", "wait a few minutes")),
        (("/api/repos/create", 500, ""), {}, ("answered 500", "files that arrived are kept")),
    ],
    ids=lambda value: "-".join(map(str, value[:2])) if isinstance(value, tuple) else None,
)
def test_what_the_hub_refuses_is_one_sentence_with_what_to_do(
    hub: UploadHub, folder: Path, refuse: tuple[str, int, str] | None, options: dict[str, str], words: tuple[str, ...]
) -> None:
    hub.refuse = [refuse] if refuse else []
    answer = push(hub.endpoint, folder, **options)
    assert answer["error"] == "PublishError"
    assert all(word in answer["sentence"] for word in words), answer["sentence"]
    assert "\n" not in answer["sentence"] and "http" not in answer["sentence"]
    assert not any(repo.commits for repo in hub.repos.values())


def test_a_card_that_the_hub_would_refuse_is_found_before_anything_is_sent(hub: UploadHub, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: my own\n---\n")
    assert '"license" must be one of' in push(hub.endpoint, folder)["sentence"]
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    assert "the hub refuses the metadata" in push(hub.endpoint, folder)["sentence"]
    assert hub.received == {} and hub.repos == {}


def test_a_hub_that_nobody_answers_for_is_named(folder: Path) -> None:
    endpoint = closed_port()
    (folder / "README.md").unlink()
    sentence = push(endpoint, folder)["sentence"]
    assert f"the hub at {endpoint} cannot be reached for {REPO}" in sentence and "check the network" in sentence


@pytest.mark.parametrize(
    "repo", ["Tiny", "me/Ti ny", "me/../you", "a/b/c", "", "me/Tiny.git", "-me/Tiny", "me/" + "x" * 97]
)
def test_a_name_that_is_none_is_refused_before_anything_is_asked(hub: UploadHub, folder: Path, repo: str) -> None:
    answer = push(hub.endpoint, folder, repo=repo, dry_run=True)
    assert answer["error"] == "UsageError" and repr(repo) in answer["sentence"]
    assert hub.requests == []


def test_an_empty_folder_and_a_missing_one_are_told_apart(tmp_path: Path) -> None:
    assert "is not found" in push(closed_port(), tmp_path / "none")["sentence"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "Tiny.gguf.partial").touch()
    assert "has no files to push" in push(closed_port(), tmp_path / "empty")["sentence"]


def test_a_link_out_of_the_folder_is_not_followed(folder: Path) -> None:
    (folder.parent / "secret").write_text("secret")
    (folder / "LICENSE").symlink_to(folder.parent / "secret")
    (folder / "Tiny-Q4.gguf").symlink_to("Tiny-Q4_0.gguf")
    files = push(closed_port(), folder, dry_run=True)["pushed"]
    assert "LICENSE" not in files and files["Tiny-Q4.gguf"] == len(LARGE["Tiny-Q4_0.gguf"])
