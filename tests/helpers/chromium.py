"""A real headless Chromium for tests: the build of npm's @sparticuz/chromium, unpacked once under .cache/chromium.

The package (70 MB) packs one program (210 MB), a software renderer for it and the few libraries that a bare Linux
lacks, all with Brotli, which the Node.js that came with npm unpacks. Playwright (PyPI) drives it.
"""

import fcntl
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.packages import CACHE, fetch_npm

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = ("@sparticuz/chromium", "153.0.0", "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0")
_UNPACK = """
const [source, target] = process.argv.slice(1);
const fs = require("fs");
const unpacked = fs.createReadStream(source).pipe(require("zlib").createBrotliDecompress());
require("stream").pipeline(unpacked, fs.createWriteStream(target), (error) => { if (error) throw error; });
"""
_ARGUMENTS = (
    "--no-sandbox",
    "--no-zygote",
    "--in-process-gpu",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--font-render-hinting=none",
)


@contextmanager
def headless_chromium() -> Iterator["Browser"]:
    """A started browser; the test is skipped, with the reason, where it cannot be had."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    folder = unpacked()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=folder / "chromium",
            args=list(_ARGUMENTS),
            env={**os.environ, "LD_LIBRARY_PATH": str(folder / "lib"), "HOME": str(folder)},
        )
        try:
            yield browser
        finally:
            browser.close()


def unpacked() -> Path:
    """The folder of the program, unpacked on first use; skips where it does not run."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("the pinned Chromium is for Linux on x86_64")
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = CACHE.parent / "chromium"
    with (CACHE.parent / "chromium.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "version"
        if stamp.is_file() and stamp.read_text("utf-8") == CHROMIUM[2]:
            return folder
        packed = fetch_npm(*CHROMIUM) / "bin"
        node = shutil.which("node")
        if node is None:
            pytest.skip("Node.js, which unpacks Chromium, is not installed")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("chromium", "swiftshader.tar", "al2023.tar", "fonts.tar"):
            target = folder / name
            subprocess.run([node, "-e", _UNPACK, packed / f"{name}.br", target], check=True, timeout=120)
            if target.suffix == ".tar":
                with tarfile.open(target) as archive:
                    archive.extractall(folder, filter="data")
                target.unlink()
        (folder / "chromium").chmod(0o755)
        stamp.write_text(CHROMIUM[2], "utf-8")
    return folder
