"""Distribute recipes over the machines of a Ray cluster: each recipe is one task that runs `quantkit bake`.

Every machine has quantkit and reaches the recipes, the sources and the output folder by the same path. If a worker is
lost, Ray starts its task again, and the journal of the bake resumes the work.
"""

import contextlib
import importlib
import importlib.util
import os
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import MissingExtraError, QuantkitError
from quantkit.progress import Progress
from quantkit.recipes.bake.process import Ended, run_process

LOCAL = "local"
_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""The environment variables that limit threads; Ray sets the first one for its workers."""
_ADDRESS = re.compile(r"(?:ray://)?([^:/]+):(\d{1,5})")
_CONNECT_SECONDS = 10.0
TRIES = 3
"""How often Ray starts a task again after it lost the worker."""


@dataclass(frozen=True)
class Done:
    """The result of the bake of one recipe."""

    recipe: Path
    ended: Ended


def bake_on_ray(
    recipes: Sequence[Path], words: Sequence[str], address: str, threads: int | None, progress: Progress
) -> list[Done]:
    """Run `quantkit bake RECIPE WORDS...` for each recipe; the results are in the order of the recipes.

    Args:
        address: the address of a Ray cluster, or `local`.
        threads: the CPUs that Ray reserves for a task; None for an equal share, at most those of the smallest machine.
            Without it the commands take the number of threads that they take without Ray.
        progress: receives a line for each finished recipe.

    Raises:
        MissingExtraError: ray is not installed.
        QuantkitError: Ray cannot start.
    """
    ray = _ray()
    _check_reachable(address)
    # Ray reports lost workers on stdout, which is for the result only
    with contextlib.redirect_stdout(sys.stderr):
        return _bake_all(ray, recipes, words, address, threads, progress)


def _bake_all(
    ray: Any, recipes: Sequence[Path], words: Sequence[str], address: str, threads: int | None, progress: Progress
) -> list[Done]:
    try:
        ray.init(
            address=None if address == LOCAL else address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            configure_logging=False,
        )
    except Exception as error:  # Ray raises errors of many classes: ConnectionError, RuntimeError, ValueError
        raise QuantkitError(
            f"Ray at {address} cannot be reached: {str(error).splitlines()[0]}; check the address of --ray"
        ) from error
    try:
        smallest = min(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
        total = int(ray.cluster_resources().get("CPU", 1))
        share = threads or max(1, min(smallest, total // len(recipes)))
        task = ray.remote(num_cpus=share, max_retries=TRIES)(_bake_one)
        folder, limits = str(Path.cwd()), {name: os.environ.get(name) for name in _LIMITS}
        options = [*words, "--threads", str(threads)] if threads else [*words]
        pending = {task.remote(folder, limits, ["bake", str(path.absolute()), *options]): path for path in recipes}
        results: dict[Path, Ended] = {}
        while pending:
            (ready, *_), _left = ray.wait(list(pending), num_returns=1)
            path = pending.pop(ready)
            ended = results[path] = _result(ray, ready)
            progress.advance(1, f"{path.name}: {'done' if ended.code == 0 else f'exit code {ended.code}'}")
        return [Done(path, results[path]) for path in recipes]
    finally:
        ray.shutdown()


def _bake_one(folder: str, limits: dict[str, str | None], words: list[str]) -> Ended:
    """On a worker: run the bake in a process that dies with the worker, with the `limits` of the first machine."""
    for name, value in limits.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return run_process(words, folder=Path(folder))


def _result(ray: Any, reference: Any) -> Ended:
    try:
        ended: Ended = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = str(error).splitlines()[0]
        return Ended(1, "", (f"Ray lost its worker {TRIES + 1} times: {reason}; run the same bake to resume",), 0.0, 0)
    return ended


def _check_reachable(address: str) -> None:
    """Raise QuantkitError if nothing listens at the address; Ray itself would wait for minutes."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        return
    try:
        socket.create_connection((match[1], int(match[2])), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise QuantkitError(
            f"Ray at {address} cannot be reached: {error.strerror or error}; start it with `ray start --head`, or pass"
            " --ray local"
        ) from error


def _ray() -> Any:
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("--ray needs Ray; install it with: pip install 'quantkit[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # without this, Ray hides the GPUs from a task that reserves none
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError(f"--ray needs Ray, which cannot be imported: {error}; install it again") from error
