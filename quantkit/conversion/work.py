"""What a calibration has on disk while it is under way: its work folder and the folders under `*.partial` names."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from quantkit.errors import OutputError
from quantkit.files import free_space
from quantkit.outputs.calibration import CalibratedPlan
from quantkit.packed.writer import partial_folder, publish


def clear(plan: CalibratedPlan, stale: Sequence[str]) -> None:
    """Remove what a run of another source or of other options left, but not the journal; `stale`: its folders."""
    for path in plan.work.iterdir():
        if path.name != "journal":
            path.unlink()
    ours = [partial_folder(folder.folder) for folder in plan.folders]
    theirs = [plan.work.with_name(name) for name in stale if name == Path(name).name and name.endswith(".partial")]
    for folder in (*ours, *theirs):
        shutil.rmtree(folder, ignore_errors=True)


def discard(plan: CalibratedPlan) -> None:
    """Remove everything that is not finished."""
    shutil.rmtree(plan.work, ignore_errors=True)
    for folder in plan.folders:
        shutil.rmtree(partial_folder(folder.folder), ignore_errors=True)


def check_space(plan: CalibratedPlan, others: Sequence[Path], more: int) -> None:
    """Raise OutputError where the disk has no room for the plan and for `more` bytes, those of the files `others`.

    What an earlier run has taken already is not asked for again.
    """
    folders = [plan.work, *(partial_folder(folder.folder) for folder in plan.folders)]
    files = [path for folder in folders if folder.exists() for path in folder.iterdir()]
    files += [path.with_name(f"{path.name}.partial") for path in others]
    free = free_space(plan.work) + sum(path.stat().st_blocks * 512 for path in files if path.exists())
    needed = plan.disk + more
    if needed > free:
        raise OutputError(
            f"{plan.work.parent} has {free / 1e9:.2f} GB free but this takes {needed / 1e9:.2f} GB;"
            " free some space or choose another folder with -o"
        )


def name_folder(folder: Path, *, failed: bool) -> None:
    """Give a folder its final name; one that failed a check is set aside under `.failed`."""
    aside = _aside(folder)
    if failed:
        shutil.rmtree(aside, ignore_errors=True)
        partial_folder(folder).replace(aside)
        return
    publish(folder)
    shutil.rmtree(aside, ignore_errors=True)


def take_back(plan: CalibratedPlan) -> None:
    """Of a run that was killed while it named its folders: those named already become partial again.

    They are checked anew with the others, and named again.
    """
    for folder in plan.folders:
        partial = partial_folder(folder.folder)
        named = next((path for path in (folder.folder, _aside(folder.folder)) if path.is_dir()), None)
        if named is not None and not partial.exists():
            named.rename(partial)


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.failed")
