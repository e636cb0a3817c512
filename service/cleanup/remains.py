"""What a job leaves in the storage: its run folder, and its checkpoints there or in a bucket.

Whatever is removed is renamed first, so that what a kill leaves is never taken for something whole, and the
next try finds it. Every method blocks, is idempotent, and raises Unavailable if the storage does not allow
it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from service.checkpoints import JobCheckpoints, check_mounted
from service.errors import Conflict, Unavailable
from service.jobs.job import Job, Removed, is_id
from service.log_files import open_log
from service.settings import Settings
from training.checkpoints.folder import size_of
from training.run_dir import RunFolder

_HISTORY = ("logs", "exits")
"""What a job that begins again from step 0 keeps of its earlier attempts."""
_DOOMED = ".deleting-"
_LONGEST_NUMBER = 32


class Remains:
    """The remains of one job that does not run.

    may: asked before each step whether the job may still lose anything.
    """

    def __init__(self, settings: Settings, job: Job, may: Callable[[], bool] = lambda: True) -> None:
        assert is_id(job.id), job.id  # it is part of paths that are deleted
        self._settings, self._job, self._may = settings, job, may
        self._storage = Path(settings.storage)
        self.folder = self._storage / job.id
        self._run = RunFolder(path=self.folder)

    def sizes(self, what: Removed) -> dict[str, int]:
        """Returns what would be removed, in bytes by name. what: one member."""
        self._check()
        with _removing(self.folder):
            if what is Removed.OTHER_CHECKPOINTS:
                return self._other_checkpoints()
            found = {path.name: size_of(path) for path in self._paths(what) if os.path.lexists(path)}
            is_own = not self._run.checkpoints.is_symlink()
            return found | (self._checkpoints() if what is Removed.CHECKPOINTS and is_own else {})

    def remove(self, what: Removed) -> int:
        """Removes a part; returns how many bytes it had. what: one member. Raises Conflict."""
        sizes = self.sizes(what)
        with _removing(self.folder):
            for path in self._paths(what):
                self._check_may()
                _remove(path)
            if what in {Removed.OTHER_CHECKPOINTS, Removed.CHECKPOINTS}:
                store = JobCheckpoints(self._settings, _as_training(self._job)).store()
                paths = {path.name for path in self._paths(what)}
                for name in sizes.keys() - paths:
                    self._check_may()
                    store.remove(name)
        return sum(sizes.values())

    def remove_for_new_start(self) -> None:
        """Removes everything from which an attempt would resume; keeps logs and exit records."""
        self.remove(Removed.CHECKPOINTS)
        with _removing(self.folder):
            entries = list(self.folder.iterdir()) if self.folder.exists() else []
            for path in entries:
                if path.name not in _HISTORY:
                    self._check_may()
                    _remove(path)

    def remove_all(self) -> int:
        """Removes the checkpoints and the run folder; returns how many bytes they had."""
        checkpoints = self.remove(Removed.CHECKPOINTS)
        with _removing(self.folder):
            rest = size_of(self.folder) if self.folder.exists() else 0
            _remove(self.folder)
        return checkpoints + rest

    def _check_may(self) -> None:
        # Race closed: another scheduler has done it meanwhile, and the job runs again.
        if not self._may():
            raise Conflict(f"job {self._job.id}: nothing more is removed, because it goes on")

    def _check(self) -> None:
        if self._job.attempt:
            check_mounted(self._storage)

    def _paths(self, what: Removed) -> list[Path]:
        run = self._run
        if what is Removed.CHECKPOINTS:
            replaced = [run.checkpoints] if run.checkpoints.is_symlink() else []
            return [run.script_checkpoints, *replaced]
        if what is Removed.LOGS:
            return [self.folder / "logs", self.folder / "exits", self.folder / "hang"]
        if what is Removed.SPOOL and _is_sent(run.spool):
            return [run.spool, _sent(run.spool)]
        return []

    def _checkpoints(self) -> dict[str, int]:
        return JobCheckpoints(self._settings, _as_training(self._job)).store().sizes()

    def _other_checkpoints(self) -> dict[str, int]:
        if self._job.runs_script:
            return {}  # which of its files are the best and the last is not known
        store = JobCheckpoints(self._settings, self._job).store()
        kept = {each.name for each in store.listed() if each.best or each.last}
        return {name: size for name, size in store.sizes().items() if name not in kept}


def _as_training(job: Job) -> Job:
    """A script has no checkpoints that the service knows, and the place of a training's is empty."""
    if not job.runs_script:
        return job
    checkpoint = {"mode": "min"}
    return replace(job, spec={**job.spec, "script": None, "training": {"checkpoint": checkpoint}})


def _sent(spool: Path) -> Path:
    return spool.with_name(f"{spool.name}.sent")


def _is_sent(spool: Path) -> bool:
    """Returns whether the tracking server has all metrics in the spool."""
    try:
        with open_log(_sent(spool)) as file:
            return int(file.read(_LONGEST_NUMBER) or 0) >= spool.stat().st_size
    except FileNotFoundError:
        return not spool.exists() or not spool.stat().st_size
    except ValueError:
        return False


def _remove(path: Path) -> None:
    """Removes a file or a folder, and what an earlier try has left of it."""
    doomed = path.with_name(f"{_DOOMED}{path.name}")
    _erase(doomed)
    if path.exists() or path.is_symlink():
        path.rename(doomed)
        _erase(doomed)


def _erase(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _removing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = str(error.filename or folder)
        which = "the storage of checkpoints" if "://" in where else "the run folder"
        raise Unavailable(which, f"{where}: {error.strerror or error}") from error
