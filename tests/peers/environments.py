"""The environments of the tools that other people quantize and load with: one virtual environment each, made on first
use under .cache/peers (one to two minutes, 1.5 GB each with a CPU torch). quantkit's own never sees them.

Their versions were found by trial. GPTQModel 7.7 asks for a torch that comes with CUDA only; 7.6 takes 2.13. AutoAWQ is
archived: 0.2.9 is its last, and transformers 4.51.3 the last that it was tested with.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.peers.samples import CACHE

INSIDE = Path(__file__).with_name("inside")
REQUIREMENTS = {
    "gptqmodel": ("torch==2.13.0", "gptqmodel==7.6.0", "transformers==5.23.0", "optimum==2.3.0"),
    "compressed": ("torch==2.13.0", "transformers==5.24.0", "compressed-tensors==0.20.1", "accelerate==1.15.0"),
    "bitsandbytes": (
        "torch==2.13.0",
        "transformers==5.24.0",
        "accelerate==1.15.0",
        "bitsandbytes==0.50.2",
        "auto-round==0.16.1",
    ),
    "mlx": ("mlx[cpu]==0.32.4", "mlx-lm==0.32.2"),
    "autoawq": ("torch==2.13.0", "autoawq==0.2.9", "transformers==4.51.3"),
    "modelopt": (
        "torch==2.13.0",
        "transformers==5.14.1",
        "accelerate==1.15.0",
        "nvidia-modelopt==0.47.0",
        "requests==2.34.2",
    ),
    "vllm": ("torch==2.13.0", "transformers==5.24.0", "compressed-tensors==0.20.1"),
}
ALONE = {
    # what vLLM's parsers of quantization_config import: its own requirements are a torch and kernels for CUDA
    "vllm": (
        *("vllm==0.33.0", "aiohappyeyeballs", "aiohttp", "aiosignal", "annotated-types", "anyio", "apache-tvm-ffi"),
        *("attrs", "blake3", "cachetools", "cbor2", "certifi", "cloudpickle", "depyf", "diskcache", "einops"),
        *("fastapi", "frozenlist", "gguf", "lark", "llguidance", "msgspec", "multidict", "openai", "openai-harmony"),
        *("opencv-python-headless", "opentelemetry-api", "opentelemetry-sdk", "opentelemetry-semantic-conventions"),
        *("partial-json-parser", "pillow", "prometheus-client", "propcache", "psutil", "py-cpuinfo", "pybase64"),
        *("pydantic==2.14.4", "pydantic-core==2.50.5", "pyzmq", "requests", "sniffio", "starlette"),
        *("typing-inspection", "urllib3", "uvloop", "xgrammar", "yarl"),
    ),
}
"""Packages that are installed without what they ask for."""


def python_of(name: str) -> Path:
    """The interpreter of an environment of REQUIREMENTS."""
    folder = CACHE / name
    stamp = folder / "ready.json"
    alone = list(ALONE.get(name, ()))
    wanted = [*REQUIREMENTS[name], *alone]
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.exists() and json.loads(stamp.read_text()) == wanted):
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(folder)])
            # first torch alone: some of the others look for it while they are built
            pip = [str(folder / "bin" / "pip"), "--disable-pip-version-check", "install", "--quiet"]
            for packages in (wanted[:1], list(REQUIREMENTS[name])):
                _run([*pip, *packages])
            if alone:
                _run([*pip, "--no-deps", *alone])
            stamp.write_text(json.dumps(wanted))
    return folder / "bin" / "python"


def run_inside(name: str, script: str, *arguments: str | Path) -> str:
    """What a script of tests/peers/inside says on stdout, run in the environment `name`.

    Raises AssertionError with its words if it fails.
    """
    command = [str(python_of(name)), str(INSIDE / script), *map(str, arguments)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _environment() -> dict[str, str]:
    # GPTQModel plans one worker for each two cores, and then asks for two: on a machine of two cores it would fail.
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return {**os.environ, **offline, "GPTQMODEL_CPU_WORKERS": str(max(2, (os.cpu_count() or 1) // 2))}


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
