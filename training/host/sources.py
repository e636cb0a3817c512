"""The checkpoints on this machine that a spec's `start_from.path` names."""

from __future__ import annotations

import os
from pathlib import Path

from training.checkpoints.listing import LIGHTNING
from training.errors import BuildError
from training.spec import Spec


def checkpoint_source(spec: Spec) -> str | None:
    """Returns the folder of checkpoints, or the file, that the spec names; None if it names none.

    A path is that of a file, of a checkpoint, or of a run: its folder, or the output folder of `syncbn
    train`. Raises BuildError if nothing is there, or if the spec names a job.
    """
    if spec.start_from is None:
        return None
    if spec.start_from.path is None:
        named = "job" if spec.start_from.job else "run"
        raise BuildError(
            f"start_from.{named}",
            "names a job of a service, and none is asked here; download its checkpoint (syncbn download JOB) "
            "and name the file in start_from.path, or submit the spec",
        )
    path = Path(os.path.abspath(Path(spec.start_from.path).expanduser()))  # noqa: PTH100 (links stay)
    for file in (path, path / LIGHTNING):
        if file.is_file():
            return str(file)
    for folder in (path, path / "checkpoints", path / "run" / "checkpoints"):
        if any(folder.glob("step-*")):
            return str(folder)
    what = "holds no checkpoints" if path.exists() else "does not exist"
    raise BuildError(
        "start_from.path",
        f"{path} {what}; name the output folder of a run, a checkpoint, or a file of weights",
    )


def check_kept(source: str | None, output: Path) -> None:
    """Raises BuildError if a run into `output` would delete its own source."""
    if source is None:
        return
    path, folder = Path(source), output.resolve()
    if path.is_relative_to(folder / "run") or path == folder / "model.pt":
        raise BuildError(
            "--output",
            f"{output} holds what start_from.path names, and would be emptied; name another folder",
        )
