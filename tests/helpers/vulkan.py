"""llama.cpp's Vulkan backend for the installed libllama, as a shared library that ggml loads at run time.

Mesa's lavapipe (Debian: mesa-vulkan-drivers) is a Vulkan device on the CPU, so the tests need no GPU. The shaders take
a quarter of an hour to compile, so no test does it: `python -m tests.helpers.vulkan` compiles the backend once into
.cache/vulkan, with cmake, ninja, glslc, libvulkan-dev and spirv-headers. Without it the tests that need it are skipped.
"""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.llama_tools import SOURCE, libraries
from tests.helpers.packages import CACHE, fetch_sdist_parts

_TREE = "vendor/llama.cpp/ggml/"
_OPTIONS = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", "-DBUILD_SHARED_LIBS=ON", "-DGGML_BACKEND_DL=ON"),
    *("-DGGML_VULKAN=ON", "-DGGML_CPU=OFF", "-DGGML_NATIVE=OFF", "-DGGML_BUILD_TESTS=OFF", "-DGGML_BUILD_EXAMPLES=OFF"),
)
_HEADER = Path("/usr/include/vulkan/vulkan_core.h")
_FIRST, _LAST = "    VkBool32 enable_best_practice = layer_settings;", ", &layer_setting_info);"


def vulkan_backend() -> Path:
    """The compiled backend, for GGML_BACKEND_PATH; skips the test without it."""
    library = _folder() / "libggml-vulkan.so"
    if not library.exists():
        pytest.skip("llama.cpp's Vulkan backend is not compiled; run: python -m tests.helpers.vulkan")
    return library


def _folder() -> Path:
    return CACHE.parent / "vulkan" / hashlib.sha256(str(libraries()).encode()).hexdigest()[:16]


def _without_layer_settings(source: Path) -> None:
    """Remove a setting of the validation layer, which headers before Vulkan 1.3.272 do not know."""
    if "VK_EXT_layer_settings" in _HEADER.read_text():
        return
    text = source.read_text()
    start, end = text.index(_FIRST), text.index(_LAST)
    kept = text.rindex("\n", 0, end) + 1
    source.write_text(text[:start] + text[kept:end] + ");" + text[end + len(_LAST) :])


def main() -> None:
    """Compile the backend."""
    folder = _folder()
    build = folder / "build"
    tree = fetch_sdist_parts(*SOURCE, "vulkan", (_TREE,)) / _TREE
    work = folder / "ggml"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(tree, work)
    # the sdist leaves out a template of pkg-config
    (work / "ggml.pc.in").touch()
    _without_layer_settings(work / "src/ggml-vulkan/ggml-vulkan.cpp")
    subprocess.run(["cmake", "-G", "Ninja", "-S", work, "-B", build, *_OPTIONS], check=True)
    subprocess.run(["ninja", "-C", build, "ggml-vulkan"], check=True)
    (build / "bin/libggml-vulkan.so").rename(folder / "libggml-vulkan.so")
    for made in (build, work):
        shutil.rmtree(made)


if __name__ == "__main__":
    main()
