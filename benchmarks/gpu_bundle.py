"""What `make test-gpu` needs on a machine without a network, in one folder of about 40 MB.

python -m benchmarks.gpu_bundle FOLDER on a machine with a network: stories15M as a checkpoint, a tokenizer for the
synthetic models, wheels, and the source of llama-cpp-python without what its build does not read.
python -m benchmarks.gpu_bundle FOLDER --install on the GPU's machine, whose Python has torch, scikit-build-core, cmake
and ninja, beside nvcc: installs the wheels, builds llama-cpp-python with CUDA for that GPU alone (144 files of CUDA),
puts the inputs where the benchmark looks for them. Then: python -m benchmarks.gpu --checkpoint FOLDER/stories15M
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.synthetic import TOKENIZER, TOKENIZER_FOLDER, tokenizer_folder
from tests.helpers.llama_tools import SOURCE
from tests.helpers.packages import fetch_sdist_parts

_VENDOR = "vendor/llama.cpp/"
_PARTS = (
    *("llama_cpp/", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE.md"),
    *(_VENDOR + part for part in ("ggml/", "src/", "include/", "cmake/", "CMakeLists.txt", "LICENSE")),
)
_ARCHIVE, _STORIES = "llama-cpp-python.tar.xz", "stories15M"
# what a Python with torch and transformers usually lacks
_WHEELS = ("gguf==0.19.0", "libggml-python==0.20.2.post1", "nvidia-ml-py")
_PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64", "manylinux_2_35_x86_64")
_OPTIONS = (
    *("-DGGML_CUDA=ON", "-DGGML_CUDA_NCCL=OFF", "-DGGML_NATIVE=ON", "-DLLAVA_BUILD=OFF", "-DLLAMA_OPENSSL=OFF"),
    *("-DLLAMA_BUILD_TOOLS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_SERVER=OFF"),
)
_COMMON = "set(LLAMA_BUILD_COMMON ON "


def bundle(folder: Path, wheels: Sequence[str], python: str) -> None:
    """Fill the folder. Wheels are those for `python`, such as "3.12", on Linux with x86-64."""
    from benchmarks.stories import stories_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(stories_checkpoint(), folder / _STORIES, dirs_exist_ok=True)
    (folder / TOKENIZER_FOLDER).mkdir(exist_ok=True)
    for name in TOKENIZER:
        shutil.copy(tokenizer_folder() / name, folder / TOKENIZER_FOLDER / name)
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, *platforms, "-d", str(folder / "wheels")]
    subprocess.run([*command, *_WHEELS, *wheels], check=True)
    with tarfile.open(folder / _ARCHIVE, "w:xz") as archive:
        archive.add(fetch_sdist_parts(*SOURCE, "cuda", _PARTS), "llama-cpp-python")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.0f} MB")


def source(folder: Path, to: Path) -> Path:
    """The source of llama-cpp-python from the bundle, as its build takes it."""
    with tarfile.open(folder / _ARCHIVE) as archive:
        archive.extractall(to, filter="data")
    tree = to / "llama-cpp-python"
    # the archive on PyPI lacks a template of pkg-config, and the build would compile libraries that only tools use
    (tree / _VENDOR / "ggml" / "ggml.pc.in").touch()
    (tree / _VENDOR / "vendor").mkdir()
    (tree / _VENDOR / "vendor" / "CMakeLists.txt").touch()
    cmake = tree / "CMakeLists.txt"
    text = cmake.read_text()
    if _COMMON not in text:
        sys.exit(f"{cmake} has no line {_COMMON!r}; the version of llama-cpp-python has changed")
    cmake.write_text(text.replace(_COMMON, _COMMON.replace(" ON ", " OFF ")))
    return tree


def install(folder: Path) -> None:
    """Install the bundle into this Python, without a network."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    tree = source(folder, folder / "build")
    options = (*_OPTIONS, f"-DCMAKE_CUDA_ARCHITECTURES={major}{minor}")
    environment = os.environ | {"CMAKE_ARGS": " ".join(options), "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, *map(str, sorted((folder / "wheels").glob("*.whl")))], check=True)
    subprocess.run([*pip, "--no-build-isolation", str(tree)], env=environment, check=True)
    shutil.copytree(folder / TOKENIZER_FOLDER, tokenizer_folder(here=True), dirs_exist_ok=True)
    shutil.rmtree(folder / "build")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--install", action="store_true", help="install the folder on the GPU's machine")
    options.add_argument("--wheel", action="append", default=[], help="another package, NAME==VERSION")
    options.add_argument("--python", default="3.12", help="version of the Python on the GPU's machine")
    arguments = options.parse_args()
    if arguments.install:
        install(arguments.folder)
    else:
        bundle(arguments.folder, arguments.wheel, arguments.python)


if __name__ == "__main__":
    main()
