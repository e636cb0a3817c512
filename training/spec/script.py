"""The section `script` of a job specification: a program of the user's own in place of a model and data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field, field_validator

from training.spec.errors import Problem, SpecError
from training.spec.parts import Part

SCRIPT_NOTE = (
    "a script decides itself how it divides its work: unlike that of a model and data, its result may depend "
    "on the number of workers"
)
"""What is said about every job that runs a script."""

_ITS_OWN = "a script does this itself; leave this key out, or give a model and data in place of the script"
NOT_WITH_A_SCRIPT: Mapping[str, str] = {
    "model": "a job has either a script, or a model and data; leave out one of them",
    "data": "a job has either a script, or a model and data; leave out one of them",
    "norm": "a script's layers stay as they are; call sync_bn.convert_sync_batchnorm(model) in it",
    **dict.fromkeys(("loss", "metrics", "optimizer", "lr_scheduler", "training", "trainer"), _ITS_OWN),
    **dict.fromkeys(("seed_everything", "ckpt_path"), _ITS_OWN),
    "start_from": "a script reads its own files; put what it starts from beside it, into the uploaded code",
}
"""Keys that do not apply to a script, and what to do instead."""


class Script(Part):
    """A Python program that one would start with torchrun. Every worker runs it."""

    path: str = Field(
        min_length=1, max_length=1000, description="Its file, relative to the folder of the uploaded code"
    )
    args: tuple[str, ...] = Field(
        default=(), max_length=1000, description="Its arguments, the rest of `sys.argv`"
    )
    grace_seconds: float = Field(
        default=30,
        ge=0,
        le=3600,
        description="To cancel, pause, resize or preempt the job, each worker gets SIGTERM, and after this "
        "time SIGKILL",
    )

    @field_validator("path")
    @classmethod
    def _within_the_code(cls, path: str) -> str:
        """Returns the path without ./ in it."""
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or pure.suffix != ".py":
            raise ValueError(
                f"{path!r} is not the path of a Python file within the uploaded code, as in train.py or "
                "tools/train.py"
            )
        return str(pure)

    @field_validator("args", mode="before")
    @classmethod
    def _words(cls, args: Any) -> Any:
        if not isinstance(args, list | tuple):
            return args
        for each in args:
            if not isinstance(each, str):
                raise ValueError(f"each argument is text; write {each!r} in quotes")
        return tuple(args)


def check_keys_beside_script(data: Mapping[str, Any]) -> None:
    """Raises SpecError for each key that does not apply to a script, if the document has one."""
    if data.get("script") is None:
        return
    wrong = {key: why for key, why in NOT_WITH_A_SCRIPT.items() if data.get(key) is not None}
    tracking = data.get("tracking")
    if isinstance(tracking, Mapping) and tracking.get("register_as") is not None:
        wrong["tracking.register_as"] = (
            "the job of a script has no model to register; log and register it in the script: "
            "mlflow.pytorch.log_model(model, registered_model_name=…)"
        )
    if wrong:
        raise SpecError([Problem(key=key, message=why) for key, why in wrong.items()])
