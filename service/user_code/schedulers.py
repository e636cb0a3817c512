"""A learning rate scheduler that has nothing to schedule, found before the job is queued."""

from __future__ import annotations

from pathlib import Path

from service.user_code.constructors import is_lightning_module
from training.spec import Problem, Spec


def scheduler_problems(spec: Spec, code: bytes | Path | None) -> list[Problem]:
    """Returns a problem if the spec schedules the rate of a LightningModule's own optimizer.

    code: the archive of the uploaded code, or a folder in its place; None if there is none. A model that is
    not known to be a LightningModule is no problem: the worker checks it.
    """
    if spec.model is None or spec.lr_scheduler is None or spec.optimizer is not None:
        return []
    if not is_lightning_module(spec.model.class_path, code):
        return []
    return [
        Problem(
            key="lr_scheduler",
            message=f"needs an optimizer to schedule, and that of {spec.model.class_path} is its own; name "
            "one in optimizer, or leave lr_scheduler out, which LightningCLI ignores without an optimizer",
        )
    ]
