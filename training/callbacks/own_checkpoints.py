"""Checkpoints that a user's own code writes: ModelCheckpoint, `trainer.save_checkpoint` and the like.

They go where Lightning puts them, but relative paths lead to a folder of the job, because the working
directory of a job on a cluster is deleted when the job ends. A link in the working directory leads there.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from training.errors import BuildError
from training.spec.lightning_values import LEFT, leaves_working_directory

IN_MEMORY = "kept in memory"
"""The path that keeps a checkpoint in memory instead of writing it."""

_SAVED = "trainer.save_checkpoint"

LIGHTNINGS_LOADERS, OUR_LOADERS = "combined_loader", "syncbn_loaders"
"""Names of the loaders' state in that of Lightning's fit loop, while it runs and in a file."""


class KeptFiles:
    """The folder of the job for files that user code writes to relative paths.

    is_lent: whether the working directory is one that the host has made for this start, beside those of other
    jobs, and deletes after it.
    """

    def __init__(self, folder: Path, *, is_lent: bool = False) -> None:
        self.folder, self._is_lent = folder, is_lent

    def remove_links(self) -> None:
        """Removes the links of earlier runs, which a user's relative path would follow into their folders."""
        with suppress(OSError):
            for path in Path.cwd().iterdir():
                if _is_ours(path) and not path.readlink().is_relative_to(self.folder.absolute()):
                    path.unlink()

    def path_of(self, path: str | os.PathLike[str], key: str) -> str:
        """Returns where a path in the working directory is kept; other paths and URLs stay as they are.

        key: what the user calls the path. Raises BuildError for a relative path that leads out of the working
        directory, and for one to a folder that the working directories of other jobs are in, too.
        """
        text = os.fspath(path)
        if "://" in text:
            return text
        here = Path(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111 (links stay)
        work = Path.cwd()
        if here.is_relative_to(self.folder.absolute()):
            return text
        if not here.is_relative_to(work):
            if leaves_working_directory(text) or (self._is_lent and here.is_relative_to(work.parent)):
                raise BuildError(key, f"{text} {LEFT}")
            return str(here) if text.startswith("~") else text
        relative = here.relative_to(work)
        if relative == Path():
            return str(self.folder)
        first = next(
            (part for part in [*relative.parents[-2::-1], relative] if not _is_folder(work / part)), relative
        )
        self._link(work / first, first)
        return str(self.folder / relative)

    def _link(self, link: Path, kept: Path) -> None:
        """Makes a link in the working directory, unless a file or link of the user's is there already.

        kept: relative to the folder.
        """
        folder = self.folder.absolute()
        with suppress(OSError):  # the user's folder may be read-only
            if _is_ours(link) and link.readlink() != folder / kept:
                link.unlink()
            if not link.is_symlink() and not link.exists():
                link.symlink_to(f"{folder}{_OURS}{kept}")


_OURS = "/././"
"""In the target of a link: means nothing, and tells our links from the user's, which are never removed."""


def _is_ours(path: Path) -> bool:
    return path.is_symlink() and _OURS in os.readlink(path)  # noqa: PTH115 (pathlib leaves out the dots)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


class WrittenCheckpoints:
    """The paths of the checkpoints that the user's code has written since the run began, on rank 0.

    file: has a path a line, as JSON, in the order in which they were first written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._paths: list[str] = []
        if file.exists():
            self._paths = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, path: str) -> None:
        """Notes a path before it is written, so that one of a start that is killed is known, too."""
        if path not in self._paths:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(path) + "\n")
            self._paths.append(path)

    def cut(self, number: int) -> list[str]:
        """Forgets all paths but the first ones, and returns those that it has forgotten."""
        kept, later = self._paths[:number], self._paths[number:]
        if later:
            self._file.write_text("".join(json.dumps(path) + "\n" for path in kept), encoding="utf-8")
        self._paths = kept
        return later


class JobCheckpointIO(TorchCheckpointIO):
    """Reads and writes checkpoints of the user's code in the kept folder.

    Where the loaders are in an epoch is saved under a name of this project, because they are its own:
    Lightning alone does not go on from a checkpoint with states of loaders that it does not have.

    The job's own checkpoint stays in memory (`last`) and is written to the checkpoint store from there,
    because a full disk must not stop rank 0 between two collectives.
    """

    def __init__(self, files: KeptFiles, written: WrittenCheckpoints) -> None:
        super().__init__()
        self.files, self._written = files, written
        self.last: dict[str, Any] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        _rename_loaders(checkpoint, LIGHTNINGS_LOADERS, OUR_LOADERS)
        if path == IN_MEMORY:
            self.last = checkpoint
            return
        kept = self.files.path_of(path, _SAVED)
        self._written.add(kept)
        super().save_checkpoint(checkpoint, kept, storage_options)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(path, *args, **kwargs)
        _rename_loaders(checkpoint, OUR_LOADERS, LIGHTNINGS_LOADERS)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        super().remove_checkpoint(self.files.path_of(path, _SAVED))


def _rename_loaders(checkpoint: dict[str, Any], old: str, new: str) -> None:
    state = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {})
    if old in state:
        state[new] = state.pop(old)


class OwnCheckpoints(Callback):
    """Moves the folders of the user's checkpoint callbacks to the kept folder before they are set up."""

    def __init__(self, files: KeptFiles) -> None:
        self.files = files

    def setup(self, trainer: Trainer, _module: LightningModule, stage: str) -> None:  # noqa: ARG002
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(folder := getattr(callback, "dirpath", None), str | os.PathLike):
                callback.dirpath = self.files.path_of(folder, f"{type(callback).__name__}.dirpath")
