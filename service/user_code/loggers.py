"""Says which loggers of a spec a job would leave out, because the package that each needs is not there."""

from __future__ import annotations

from pathlib import Path

from service.user_code.modules import find_module, sources_of
from service.user_code.requirements import KEY, required_names
from training.spec import Spec
from training.spec.trainer import packages_of_logger


def left_out_loggers(spec: Spec, code: bytes | Path | None) -> list[str]:
    """Returns a note for each logger whose package is not in the environment, the code or the requirements.

    code: the archive of the uploaded code, or a folder in its place; None if there is none.
    """
    sources, required = sources_of(code), required_names(spec, code)
    notes = []
    for key, part in spec.trainer.components().items():
        packages = packages_of_logger(part.class_path) if key.startswith("trainer.logger") else ()
        if not packages or any(name.lower() in required or find_module(name, sources) for name in packages):
            continue
        what = f"{key}: {part.class_path} needs {packages[0]}, which is not installed where jobs run"
        notes.append(
            f"{what}; the job leaves the logger out, unless one of {KEY} brings it"
            if spec.environment.requirements
            else f"{what}; the job leaves the logger out, unless {KEY} has it"
        )
    return notes
