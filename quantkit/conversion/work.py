"""The work of a conversion on disk: its lock and journal, partial names, space, clean-up, final names."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from quantkit.errors import (
    CalibrationError,
    HubError,
    OutputError,
    PassingError,
    QuantkitError,
    ReadError,
    passing_fault,
)
from quantkit.files import (
    PARTIAL,
    failed_path,
    make_folder,
    make_partial_folder,
    partial_path,
    refuse_existing,
    remove,
    require_space,
    sync,
)
from quantkit.journal import Journal
from quantkit.machine import peak_memory
from quantkit.outputs.plan import ConversionPlan
from quantkit.packed.writer import publish
from quantkit.system import descriptors
from quantkit.units import human_bytes


@contextmanager
def open_work(plan: ConversionPlan, *, force: bool) -> Iterator[Journal]:
    """Lock the work folder and yield its journal; remove the folder at the end.

    An error that the same command would meet again removes everything unfinished. Other errors keep it for a resumed
    run: a full disk after the first step, an unreadable source, lack of memory, an interruption.

    Raises:
        OutputError: the folder is not writable, too small or in use. Without `force` also if an output exists, or if
            the folder has an unfinished run of other options.
    """
    make_partial_folder(plan.work)
    partial = [str(partial_path(path).relative_to(plan.output)) for path in plan.paths]
    journal = Journal(plan.work / "journal", plan.fingerprint, partial, force=force, settings=plan.settings)
    try:
        if not journal.resumed:
            _clear(plan, journal)
        if journal.finishing is not None:
            _take_back(plan)
        else:
            _refuse_existing(plan, force=force)
        require_space(plan.output, plan.disk, (plan.work, *map(partial_path, plan.paths)))
        for folder in {path.parent for path in plan.paths}:
            make_folder(folder)
        yield journal
        _let_go(journal)
        shutil.rmtree(plan.work)
    except MemoryError:
        if plan.samples is None:
            raise
        raise CalibrationError(
            f"out of memory at about {human_bytes(peak_memory())}; rerun with fewer --threads to resume, or with a"
            " smaller --seq-len and --force to start over"
        ) from None
    except (ReadError, HubError, PassingError):
        raise
    except QuantkitError as error:
        if not (journal.records and (isinstance(error, OutputError) or passing_fault(error))):
            _let_go(journal)
            _discard(plan)
        raise
    finally:
        journal.close()


def name_output(path: Path, *, failed: bool) -> None:
    """Give a partial file or folder its final name, or `NAME.failed` when it failed a check."""
    partial, aside = partial_path(path), failed_path(path)
    remove(aside)
    if failed:
        partial.replace(aside)
    elif partial.is_dir():
        publish(path)
    else:
        partial.replace(path)
    sync(path.parent)


def _let_go(journal: Journal) -> None:
    """Before the work folder is removed: Windows does not remove a file that is open.

    Elsewhere the journal stays locked until it is gone, so that no second command takes up the folder meanwhile.
    """
    if not descriptors.REMOVES_OPEN_FILES:
        journal.close()


def _refuse_existing(plan: ConversionPlan, *, force: bool) -> None:
    refuse_existing(plan.paths, force=force)
    for folder in plan.folders:
        if folder.folder.exists() and not folder.folder.is_dir():
            raise OutputError(f"{folder.folder} is a file; move it away or choose another folder with -o")


def _clear(plan: ConversionPlan, journal: Journal) -> None:
    """Remove what a run of another source or of other options left, except the journal."""
    for path in plan.work.iterdir():
        if path != journal.path:
            remove(path)
    stale = [plan.output / name for name in journal.stale if name.endswith(PARTIAL) and ".." not in Path(name).parts]
    for path in (*stale, *map(partial_path, plan.paths)):
        remove(path)


def _discard(plan: ConversionPlan) -> None:
    """Remove everything unfinished, and folders that are empty then."""
    for path in (plan.work, *map(partial_path, plan.paths)):
        remove(path)
    for folder in {path.parent for path in plan.paths} - {plan.output}:
        with suppress(OSError):
            folder.rmdir()


def _take_back(plan: ConversionPlan) -> None:
    """After a kill during the renaming: give renamed outputs their partial names, to be checked and renamed again."""
    for path in plan.paths:
        renamed = next((name for name in (path, failed_path(path)) if name.exists()), None)
        if renamed is not None and not partial_path(path).exists():
            renamed.rename(partial_path(path))
