"""Recipes spread over machines by Ray: each is one task, a `quantkit bake` of its own where a worker is free.

What a killed worker had begun is taken up by the next try, by the bake's journal: the output folder, the recipes and
the sources lie on storage that every machine reaches by the same path, and quantkit is installed on each.
"""

import contextlib
import importlib
import os
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import MissingExtraError, QuantkitError
from quantkit.recipes.bake.process import Ended, Messages, run_process

LOCAL = "local"
_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Ray sets the first for its workers."""
_ADDRESS = re.compile(r"(?:ray://)?([^:/]+):(\d{1,5})")
_PATIENCE = 10.0
TRIES = 3
"""How often a task whose worker was lost is begun again."""


@dataclass(frozen=True)
class Done:
    """How the bake of one recipe ended, on whichever machine."""

    recipe: Path
    ended: Ended


def bake_on_ray(
    recipes: Sequence[Path], words: Sequence[str], address: str, threads: int | None, messages: Messages
) -> list[Done]:
    """`quantkit bake RECIPE WORDS...` for each recipe, in their order; `address`: a Ray cluster's, or `local`.

    Each task counts as `threads` CPUs, or as an equal share of the smallest machine's where None; how many threads its
    commands take is left as it would be without Ray, for the number can tell in the last bit. Raises MissingExtraError
    without ray, QuantkitError where Ray cannot start.
    """
    ray = _ray()
    _knock(address)
    # Ray tells of lost workers on stdout, where only the answer belongs
    with contextlib.redirect_stdout(sys.stderr):
        return _bake_all(ray, recipes, words, address, threads, messages)


def _bake_all(
    ray: Any, recipes: Sequence[Path], words: Sequence[str], address: str, threads: int | None, messages: Messages
) -> list[Done]:
    try:
        ray.init(
            address=None if address == LOCAL else address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            configure_logging=False,
        )
    except Exception as error:  # Ray raises what it likes: ConnectionError, RuntimeError, ValueError
        raise QuantkitError(f"Ray at {address} cannot be reached: {str(error).splitlines()[0]}") from error
    try:
        smallest = min(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
        total = int(ray.cluster_resources().get("CPU", 1))
        share = threads or max(1, min(smallest, total // len(recipes)))
        task = ray.remote(num_cpus=share, max_retries=TRIES)(_bake_one)
        here, limits = str(Path.cwd()), {name: os.environ.get(name) for name in _LIMITS}
        asked = [*words, "--threads", str(threads)] if threads else [*words]
        pending = {task.remote(here, limits, ["bake", str(path.absolute()), *asked]): path for path in recipes}
        found: dict[Path, Ended] = {}
        while pending:
            (ready, *_), _left = ray.wait(list(pending), num_returns=1)
            path = pending.pop(ready)
            found[path] = _result(ray, ready)
            messages.note(f"{path.name}: {'done' if found[path].code == 0 else f'exit code {found[path].code}'}")
        return [Done(path, found[path]) for path in recipes]
    finally:
        ray.shutdown()


def _bake_one(folder: str, limits: dict[str, str | None], words: list[str]) -> Ended:
    """On a worker: the bake as a process, which dies with the worker. `limits`: as where the command was given."""
    for name, value in limits.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return run_process(words, Messages(), Path(folder))


def _result(ray: Any, reference: Any) -> Ended:
    try:
        ended: Ended = ray.get(reference)
    except ray.exceptions.RayError as error:
        return Ended(1, "", (f"Ray lost its worker {TRIES + 1} times: {str(error).splitlines()[0]}",), 0.0, 0)
    return ended


def _knock(address: str) -> None:
    """Raise QuantkitError where nobody listens: Ray itself would wait for minutes."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        return
    try:
        socket.create_connection((match[1], int(match[2])), timeout=_PATIENCE).close()
    except OSError as error:
        raise QuantkitError(
            f"Ray at {address} cannot be reached: {error.strerror or error}; start it with `ray start --head`, or write"
            " --ray local"
        ) from error


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # a task that asks for no GPU still sees those that are there
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError("spreading bakes needs Ray; install it with: pip install 'quantkit[ray]'") from error
