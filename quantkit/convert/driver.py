"""From a source to finished, checked files: plan, pass, verify, rename, origin.

Work happens under `*.partial` names beside the final ones; a kill at any moment is resumed by the same command, and
what stands under a final name is whole and checked.
"""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantkit.convert.engine import Progress, partial_path, run_pass
from quantkit.convert.journal import Journal
from quantkit.convert.origin import write_origin
from quantkit.convert.plan import Output, Plan
from quantkit.errors import CheckpointError, ImatrixError, OutputError, UnsupportedError
from quantkit.verify import Check, Verified, verify_plan


@dataclass(frozen=True)
class Result:
    """A finished conversion. `seconds` are wall time of the pass and of the checks; `peak_memory` in bytes.

    `failed` outputs keep the suffix `.failed` and never get their final names.
    """

    plan: Plan
    verified: tuple[Verified, ...]
    seconds: dict[str, float]
    peak_memory: int
    resumed: int
    quantize_seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[Verified, ...]:
        return tuple(item for item in self.verified if item.failed)


def convert(
    plan: Plan,
    *,
    force: bool = False,
    logits: bool | None = None,
    progress: Progress = lambda _name, _elements: None,
    stage: Callable[[str], None] = lambda _text: None,
) -> Result:
    """Run a plan to its end. A run that was killed is taken up where it was.

    `logits`: see `verify_plan`. `stage(text)` tells what happens now, `progress(tensor, elements)` how far the pass is.

    Raises:
        OutputError: the folder cannot be written, is too small, or holds the outputs already (unless `force`).
        CheckpointError, UnsupportedError: the source turned out bad; the partial files are removed.
    """
    folder = plan.request.folder
    _make_folder(folder)
    names = [file.name for output in plan.outputs for file in output.files]
    journal = Journal(folder / f"{plan.model.name}.journal.partial", plan.fingerprint, names, force=force)
    try:
        for name in journal.stale:
            partial_path(folder, Path(name).name).unlink(missing_ok=True)
        if journal.finishing is None:
            _refuse_existing(plan, journal, force)
            _check_space(plan)
        started = time.monotonic()
        resumed = len(journal.done)
        quantize_seconds: dict[str, float] = {}
        if journal.finishing is None:
            quantize_seconds = run_pass(plan, journal, progress)
        passed = time.monotonic()
        if journal.finishing is None:
            stage("checking what was written")
            verified = tuple(verify_plan(plan, logits=logits, progress=stage))
            seconds = {"pass": passed - started, "verify": time.monotonic() - passed}
            for path in _partials(plan):
                _sync(path)
            write_origin(folder, plan, verified, seconds, peak_memory())
            journal.start_finishing(
                {name: sha for item in verified if not item.failed for name, sha in item.sha256.items()}
            )
        else:
            seconds = {"pass": 0.0, "verify": 0.0}
            verified = tuple(_as_journaled(output, journal.finishing) for output in plan.outputs)
        _rename(folder, verified)
        result = Result(plan, verified, seconds, peak_memory(), resumed, quantize_seconds)
        journal.remove()
    except (CheckpointError, UnsupportedError, ImatrixError):
        # The source is at fault: what was written is of no use to a resumed run.
        for path in _partials(plan):
            path.unlink(missing_ok=True)
        journal.remove()
        raise
    finally:
        journal.close()
    return result


def _rename(folder: Path, verified: Sequence[Verified]) -> None:
    """Give files their final names; a file that failed a check is set aside under `.failed`."""
    for item in verified:
        for file in item.output.files:
            partial = partial_path(folder, file.name)
            if partial.exists():
                partial.replace(folder / (f"{file.name}.failed" if item.failed else file.name))
    _sync(folder)


def _as_journaled(output: Output, finishing: Mapping[str, str]) -> Verified:
    """An output whose checks an earlier run finished: all that the journal keeps of them."""
    hashes = {file.name: finishing[file.name] for file in output.files if file.name in finishing}
    status = "passed" if len(hashes) == len(output.files) else "failed"
    return Verified(output, (Check("earlier run", status, "checked before this run took over"),), hashes)


def _partials(plan: Plan) -> list[Path]:
    return [partial_path(plan.request.folder, file.name) for output in plan.outputs for file in output.files]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot create {folder}: {error.strerror or error}; choose another folder with -o"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder} is not writable; choose another folder with -o")


def _refuse_existing(plan: Plan, journal: Journal, force: bool) -> None:
    existing = [
        plan.request.folder / file.name
        for output in plan.outputs
        for file in output.files
        if (plan.request.folder / file.name).exists()
    ]
    if existing and not force:
        if not journal.done:
            journal.remove()
        raise OutputError(f"{existing[0]} is there already; add --force to replace it")


def _check_space(plan: Plan) -> None:
    """What is still to be written must fit; blocks that a resumed run owns already count as free."""
    owned = sum(path.stat().st_blocks * 512 for path in _partials(plan) if path.exists())
    free = free_space(plan.request.folder) + owned
    if plan.disk > free:
        raise OutputError(
            f"{plan.request.folder} has {free / 1e9:.2f} GB free but the outputs take {plan.disk / 1e9:.2f} GB;"
            " free some space, ask for fewer types or choose another folder with -o"
        )


def free_space(folder: Path) -> int:
    """Bytes free where `folder` is or would be made."""
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _sync(path: Path) -> None:
    if not path.exists():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def peak_memory() -> int:
    """The largest resident size this process has had, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
