"""From a source to finished, checked files: plan, pass, verify, rename, origin.

Work happens under `*.partial` names beside the final ones; a kill at any moment is resumed by the same command, and
what stands under a final name is whole and checked.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantkit.conversion.gguf_pass import Progress, run_pass
from quantkit.conversion.record import write_origin
from quantkit.errors import CheckpointError, ImatrixError, OutputError, ReadError, UnsupportedError
from quantkit.files import free_space, make_folder, partial_path, sync
from quantkit.journal import Journal
from quantkit.machine import peak_memory
from quantkit.outputs.gguf_files import Output, Plan
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
        ReadError: the source could not be read this time; they are kept.
    """
    folder = plan.request.folder
    make_folder(folder)
    names = [file.name for output in plan.outputs for file in output.files]
    journal = Journal(folder / f"{plan.model.name}.journal.partial", plan.fingerprint, names, force=force)
    try:
        for name in journal.stale:
            partial_path(folder / Path(name).name).unlink(missing_ok=True)
        if not _still_there(plan, journal):
            journal.forget()
        if journal.finishing is not None:
            verified = tuple(_as_journaled(output, journal.finishing) for output in plan.outputs)
            result = Result(plan, verified, {"pass": 0.0, "verify": 0.0}, peak_memory(), len(plan.model.tensors))
        else:
            _refuse_existing(plan, force)
            _check_space(plan)
            result = _write_and_check(plan, journal, logits, progress, stage)
        _rename(folder, result.verified)
        journal.remove()
    except ReadError:
        # Nothing is wrong with what was written: the same command takes it up.
        raise
    except (CheckpointError, UnsupportedError, ImatrixError):
        _clean_up(plan, journal)
        raise
    except OutputError:
        if not journal.done:
            _clean_up(plan, journal)
        raise
    finally:
        journal.close()
    return result


def _write_and_check(
    plan: Plan, journal: Journal, logits: bool | None, progress: Progress, stage: Callable[[str], None]
) -> Result:
    """The pass, the checks, the origin record; after it only renaming is left, and the journal says so."""
    resumed, started = len(journal.done), time.monotonic()
    quantize_seconds = run_pass(plan, journal, progress)
    passed = time.monotonic()
    stage("checking what was written")
    verified = tuple(verify_plan(plan, logits=logits, progress=stage))
    seconds = {"pass": passed - started, "verify": time.monotonic() - passed}
    for path in _partials(plan):
        sync(path)
    write_origin(plan.request.folder, plan, verified, seconds, peak_memory())
    passing = [item.sha256 for item in verified if not item.failed]
    journal.start_finishing({name: digest for hashes in passing for name, digest in hashes.items()})
    return Result(plan, verified, seconds, peak_memory(), resumed, quantize_seconds)


def _still_there(plan: Plan, journal: Journal) -> bool:
    """Whether the files that the journal speaks of have not been removed or cut meanwhile."""
    for output in plan.outputs:
        for file in output.files:
            places = [partial_path(plan.request.folder / file.name)]
            if journal.finishing is not None:
                places += [plan.request.folder / file.name, plan.request.folder / f"{file.name}.failed"]
            if not any(place.exists() and place.stat().st_size == file.size for place in places):
                return False
    return True


def _clean_up(plan: Plan, journal: Journal) -> None:
    """Remove what a resumed run could not use."""
    for path in _partials(plan):
        path.unlink(missing_ok=True)
    journal.remove()


def _rename(folder: Path, verified: Sequence[Verified]) -> None:
    """Give files their final names; a file that failed a check is set aside under `.failed`."""
    for item in verified:
        for file in item.output.files:
            partial, failed = partial_path(folder / file.name), folder / f"{file.name}.failed"
            if partial.exists():
                partial.replace(failed if item.failed else folder / file.name)
            if not item.failed:
                failed.unlink(missing_ok=True)
    sync(folder)


def _as_journaled(output: Output, finishing: Mapping[str, str]) -> Verified:
    """An output whose checks an earlier run finished: all that the journal keeps of them."""
    hashes = {file.name: finishing[file.name] for file in output.files if file.name in finishing}
    status = "passed" if len(hashes) == len(output.files) else "failed"
    return Verified(output, (Check("earlier run", status, "checked before this run took over"),), hashes)


def _partials(plan: Plan) -> list[Path]:
    return [partial_path(plan.request.folder / file.name) for output in plan.outputs for file in output.files]


def _refuse_existing(plan: Plan, force: bool) -> None:
    for output in plan.outputs:
        for file in output.files:
            path = plan.request.folder / file.name
            if path.exists() and not force:
                raise OutputError(f"{path} is there already; add --force to replace it")


def _check_space(plan: Plan) -> None:
    """What is still to be written must fit; blocks that a resumed run owns already count as free."""
    owned = sum(path.stat().st_blocks * 512 for path in _partials(plan) if path.exists())
    free = free_space(plan.request.folder) + owned
    if plan.disk > free:
        raise OutputError(
            f"{plan.request.folder} has {free / 1e9:.2f} GB free but the outputs take {plan.disk / 1e9:.2f} GB;"
            " free some space, ask for fewer types or choose another folder with -o"
        )
