"""The section `environment` of a job specification: what its ranks find in their environment variables."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from training.spec.errors import located
from training.spec.parts import Part

MAX_VARIABLES = 100
MAX_VALUE = 32_768
MIN_SECRET = 8
_MAX_LINES, _MAX_LINE = 200, 2_000
_URL_USER = re.compile(r"([A-Za-z][\w+.-]*)://([^/\s@]+)@")
_MAX_NAME = 200
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)

_WORKERS = "a rank's position is given by the service; set resources.workers"
_GPUS = "a rank's GPUs are given by the service; set resources.gpus_per_worker"
_THREADS = "ranks are forked from a process that has its thread pools already; set resources.cpus_per_worker"
_LINKER = (
    "it is read when a process starts, and ranks are forked from one that runs; set it where the workers "
    "start: for `ray start`, or in the shell of `syncbn train`"
)
_PYTHON = (
    "Python reads it when it starts, and ranks are forked from a process that runs; do the same in your code"
)
_TORCH = (
    "torch reads it when it is imported, and ranks are forked from a process that has imported it; set the "
    "same in your code"
)
_RUN = "it would move what the job logs to another place than its run; set `tracking`"

_REFUSED: dict[str, str] = {
    "PYTHONPATH": "Python reads it when it starts, and ranks are forked from a process that runs; give your "
    "modules with --code, and packages in environment.requirements",
    "PYTHON*": _PYTHON,
    "SYNCBN_*": "these names are the service's own; choose another name",
    "RAY_*": "Ray reads them, and ranks are not processes of Ray; omit it",
    "RANK": _WORKERS,
    "LOCAL_RANK": _WORKERS,
    "NODE_RANK": _WORKERS,
    "GROUP_RANK": _WORKERS,
    "ROLE_RANK": _WORKERS,
    "WORLD_SIZE": _WORKERS,
    "LOCAL_WORLD_SIZE": _WORKERS,
    "MASTER_*": "the ranks' meeting point is given by the service; omit it",
    "TORCHELASTIC_*": _WORKERS,
    "PET_*": _WORKERS,
    "PL_GLOBAL_SEED": "the seed is training.seed; set that",
    "PL_*": "it would change arguments of the Trainer that the spec does not show; set them in `trainer`",
    "LD_*": _LINKER,
    "DYLD_*": _LINKER,
    "GLIBC_TUNABLES": _LINKER,
    "MALLOC_*": _LINKER,
    "OMP_*": _THREADS,
    "KMP_*": _THREADS,
    "MKL_NUM_*": _THREADS,
    "MKL_DOMAIN_*": _THREADS,
    "MKL_DYNAMIC": _THREADS,
    "MKL_THREADING_LAYER": _THREADS,
    "OPENBLAS_*": _THREADS,
    "GOTO_NUM_THREADS": _THREADS,
    "CUDA_VISIBLE_DEVICES": _GPUS,
    "CUDA_DEVICE_ORDER": _GPUS,
    "NVIDIA_VISIBLE_DEVICES": _GPUS,
    "TORCH_LOGS*": _TORCH,
    "TORCH_TRACE": _TORCH,
    "TORCH_CPP_LOG_LEVEL": _TORCH,
    "TORCH_COMPILE_DEBUG": _TORCH,
    "TORCH_DISTRIBUTED_DEBUG": _TORCH,
    "TORCHDYNAMO_*": _TORCH,
    "TORCHINDUCTOR_*": _TORCH,
    "MPLBACKEND": "matplotlib is imported already; call matplotlib.use in your code",
    "MLFLOW_TRACKING_URI": _RUN,
    "MLFLOW_REGISTRY_URI": _RUN,
    "MLFLOW_RUN_ID": _RUN,
    "MLFLOW_EXPERIMENT_*": _RUN,
}
"""Why a name is refused, and the way out. A name with * stands for all names that begin so."""


def name_problem(name: str) -> str | None:
    """Returns why a job may not set a variable of this name; None if it may."""
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        return (
            f"{name[:80]!r} is not a name of a variable; it has letters, digits and underscores, no digit "
            f"first, and at most {_MAX_NAME} characters"
        )
    return _REFUSED.get(name) or next(
        (why for each, why in _REFUSED.items() if each.endswith("*") and name.startswith(each[:-1])), None
    )


def secret_problem(value: str) -> str | None:
    """Returns why this cannot be the value of a secret; None if it can."""
    if len(value) < MIN_SECRET:
        return (
            f"has {len(value)} characters; one of fewer than {MIN_SECRET} cannot be masked in logs "
            "without masking much else"
        )
    return _value_problem(value)


def line_problem(line: str, *, in_file: bool = False) -> str | None:
    """Returns why a job's requirements may not have this line of pip's format; None if they may.

    in_file: it is a line of a file in the code, which may be empty, and may refer to other files.
    """
    first = line.split()[0].partition("=")[0] if line.strip() else ""
    if "\0" in line or "\n" in line or "\r" in line or len(line) > _MAX_LINE:
        return f"is not one line of at most {_MAX_LINE} characters"
    if not first and not in_file:
        return "is empty; leave it out"
    if first.startswith("-e") or first == "--editable":
        return "an editable install is a link to a folder that may change; write the path without -e"
    if first.startswith("-r") or first == "--requirement":
        return None if in_file else "name the file alone, as in `requirements: requirements.txt`"
    if not first.startswith("#") and any(_has_password(match) for match in _URL_USER.finditer(line)):
        return (
            "has a password or a token, which would be stored and shown; write ${NAME} in its place and list "
            "NAME in environment.secrets"
        )
    return None


def _has_password(match: re.Match[str]) -> bool:
    """Returns whether a URL names a password, or a token in place of a user, and not as a variable."""
    user, _, password = match[2].partition(":")
    secret = password or (user if match[1].startswith("http") else "")
    return bool(secret) and "${" not in secret


class Environment(Part):
    """What the ranks find in their environment."""

    variables: dict[str, str] = Field(
        default_factory=dict,
        max_length=MAX_VARIABLES,
        description="Environment variables of the ranks, by name",
    )
    secrets: list[str] = Field(
        default_factory=list,
        max_length=MAX_VARIABLES,
        description="Names of secrets that the ranks get as environment variables",
    )
    requirements: list[str] | str = Field(
        default_factory=list,
        description="Packages to install, as in pip's requirements files: a list of lines, or the path of a "
        "file in the uploaded code",
    )

    @field_validator("variables", mode="before")
    @classmethod
    def _are_text(cls, variables: Any) -> Any:
        if isinstance(variables, dict):
            for name, value in variables.items():
                if isinstance(value, bool | int | float):
                    written = str(value).lower() if isinstance(value, bool) else value
                    raise located(
                        f"environment.variables.{name}",
                        f'is {written}, and a variable is text; write it in quotes: "{written}"',
                    )
        return variables

    @field_validator("variables")
    @classmethod
    def _can_be_set(cls, variables: dict[str, str]) -> dict[str, str]:
        for name, value in variables.items():
            if why := name_problem(name) or _value_problem(value):
                raise located(f"environment.variables.{name[:80]}", why)
        return variables

    @field_validator("secrets")
    @classmethod
    def _are_names(cls, secrets: list[str]) -> list[str]:
        for position, name in enumerate(secrets):
            if why := name_problem(name):
                raise located(f"environment.secrets.{position}", why)
        if repeated := sorted({name for name in secrets if secrets.count(name) > 1}):
            raise ValueError(f"{repeated[0]} is listed twice; list it once")
        return secrets

    @field_validator("requirements")
    @classmethod
    def _can_be_required(cls, requirements: list[str] | str) -> list[str] | str:
        if isinstance(requirements, str):
            path = PurePosixPath(requirements)
            if path.is_absolute() or ".." in path.parts or not path.name or "\0" in requirements:
                raise ValueError(f"{requirements!r} is not the path of a file in the uploaded code")
            return requirements
        if len(requirements) > _MAX_LINES:
            raise ValueError(f"{len(requirements)} lines; at most {_MAX_LINES}: put them into a file")
        for position, line in enumerate(requirements):
            if why := line_problem(line):
                raise located(f"environment.requirements.{position}", why)
        return requirements

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        if both := sorted(self.variables.keys() & set(self.secrets)):
            raise located(
                f"environment.variables.{both[0]}",
                "is a secret too, under environment.secrets; keep one of them",
            )
        lines = [] if isinstance(self.requirements, str) else self.requirements
        for position, line in enumerate(lines):
            if missing := sorted(set(_VARIABLE.findall(line)) - set(self.secrets)):
                raise located(
                    f"environment.requirements.{position}",
                    f"${{{missing[0]}}} is none of environment.secrets; add it there",
                )
        return self

    def __hash__(self) -> int:
        """As `ClassSpec` has one: a default with a hash is not copied for each spec."""
        return hash((*self.variables, *self.secrets))


_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
"""What pip replaces from its environment."""


def _value_problem(value: str) -> str | None:
    if len(value) > MAX_VALUE:
        return f"has {len(value)} characters; at most {MAX_VALUE} are possible: put long values into a file"
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        return "contains characters that are not text (NUL or half a surrogate pair)"
    return None
