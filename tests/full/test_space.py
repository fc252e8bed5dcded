"""The page for a hub Space in a real Chromium: gradio in an environment of its own, a hub on the same machine."""

import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from gguf import GGUFReader

from tests.helpers.cached_environment import ROOT, cached_environment, dependencies, outside
from tests.helpers.chromium import headless_chromium
from tests.helpers.command import quantkit
from tests.helpers.hub_server import Hub, Repo, running_hub
from tests.helpers.ports import free_port
from tests.helpers.tiny import tiny_llama

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SPACE = ROOT / "spaces"
OPEN, PRIVATE, PICKLED = "some-org/Tiny", "some-org/Private", "some-org/Pickled"


def test_the_space_requires_what_the_package_requires() -> None:
    assert (SPACE / "requirements.txt").read_text("utf-8").splitlines() == dependencies()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source") / "Tiny", variant="llama3", hidden=256, intermediate=256)


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with running_hub() as running:
        running.repos[OPEN] = Repo(files)
        running.repos[PRIVATE] = Repo(files, tokens=("hf_owner",))
        pickled = {name: data for name, data in files.items() if not name.endswith(".safetensors")}
        running.repos[PICKLED] = Repo({**pickled, "pytorch_model.bin": bytes(100)})
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with headless_chromium() as started:
        yield started


@contextmanager
def running_page(browser: "Browser", hub: Hub, home: Path, **more: str) -> Iterator["Page"]:
    """The page in a browser; `more`: environment variables of the Space."""
    version = next(
        line.split()[1] for line in (SPACE / "README.md").read_text("utf-8").splitlines() if "sdk_version" in line
    )
    python = cached_environment("space", [f"gradio=={version}", *dependencies()])
    port = free_port()
    variables = outside(
        python,
        PYTHONPATH=str(ROOT),
        HF_ENDPOINT=hub.endpoint,
        HF_HOME=str(home / "hub"),
        HF_TOKEN="hf_owner",
        TMPDIR=str(home),
        GRADIO_SERVER_PORT=str(port),
        GRADIO_ANALYTICS_ENABLED="False",
        NO_PROXY="127.0.0.1,localhost",
        **more,
    )
    with (home / "log").open("w") as log:
        process = subprocess.Popen([python, SPACE / "app.py"], cwd=home, env=variables, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (home / "log").read_text()
                time.sleep(0.25)
        opened = browser.new_page()
        opened.set_default_timeout(60_000)
        opened.goto(url, wait_until="domcontentloaded")
        yield opened
        opened.close()
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def page(browser: "Browser", hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Page"]:
    with running_page(browser, hub, tmp_path_factory.mktemp("space")) as opened:
        yield opened


def press(page: "Page", button: str, model: str) -> str:
    """The message after the button was pressed with this model."""
    page.locator("#model textarea, #model input").first.fill(model)
    message = page.locator("#message textarea, #message input").first
    before = message.input_value()
    page.locator(f"#{button}").click()
    for _ in range(300):
        page.wait_for_timeout(100)
        if message.input_value() not in ("", before):
            break
    return message.input_value()


@pytest.mark.full
def test_the_page_plans_converts_and_gives_the_file_of_the_command(
    page: "Page", hub: Hub, folder: Path, tmp_path: Path
) -> None:
    assert "take " in press(page, "plan", OPEN)
    hub.settle()
    table = page.locator("#table").inner_text()
    assert "q4_k_m" in table and "yes" in table
    assert "1 converted" in press(page, "convert", OPEN)
    with page.expect_download() as waiting:
        page.locator("#files a[download]").first.click()
    file = tmp_path / "downloaded.gguf"
    waiting.value.save_as(file)
    assert GGUFReader(file).fields["general.file_type"].contents() == 15
    # the plan stated the size to the byte
    assert f"{file.stat().st_size / 1e6:.1f}" in table
    # the command converts a folder that is on the disk: other code reads the weights
    assert quantkit("gguf", folder, "-t", "q4_k_m", "--no-logits", "-o", tmp_path / "out").code == 0
    (expected,) = (tmp_path / "out").rglob("*.gguf")
    ours = {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(file).tensors}
    assert ours == {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(expected).tensors}


@pytest.mark.full
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("/etc/passwd", "not a hub id"),
        ("../secret", "not a hub id"),
        ("modelscope:some-org/Tiny", "not a hub id"),
        ("some-org/Absent", "some-org/Absent"),
        (PICKLED, "pytorch_model.bin"),
        (PRIVATE, PRIVATE),
    ],
)
def test_an_error_is_one_sentence_in_the_page(page: "Page", hub: Hub, model: str, words: str) -> None:
    message = press(page, "convert", model)
    assert words in message and "\n" not in message and "Traceback" not in message
    hub.settle()
    assert all(request.authorization is None for request in hub.requests)


@pytest.mark.full
def test_outputs_larger_than_the_free_disk_are_refused_before_weights_are_read(
    browser: "Browser", folder: Path, tmp_path: Path
) -> None:
    (shard,) = folder.glob("*.safetensors")
    data = shard.read_bytes()
    with running_hub() as hub:
        hub.repos[OPEN] = Repo({path.name: path.read_bytes() for path in folder.iterdir()})
        with running_page(browser, hub, tmp_path, QUANTKIT_SPACE_RESERVE_GIB="1000000") as page:
            message = press(page, "convert", OPEN)
        assert "of disk" in message and "are free" in message and "\n" not in message
        end_of_header = 8 + int.from_bytes(data[:8], "little")
        ranges = hub.stored(shard.name)
        assert ranges and all(end <= end_of_header for _, end in ranges)
