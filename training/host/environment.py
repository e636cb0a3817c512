"""The environment variables of ranks: those of the machine and those of the job. Pure functions.

The service's own variables, above all its secrets, never reach a job.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from training.errors import BuildError
from training.host.torchrun import script_variables
from training.protocol import Order, RankAssignment

_MACHINE_NAMES = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
        "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
        "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
        "PYTHONDONTWRITEBYTECODE",
    }
)  # fmt: skip
_MACHINE_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "OMP_", "MKL_", "KMP_", "OPENBLAS_")
_PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"})
_LOOPBACK = "127.0.0.1,localhost,::1"
_STORAGE_PREFIX = "AWS_"
_OF_THE_TRACKER = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
_SERVICE_PREFIXES = ("SYNCBN_", "RAY_")

RANK_DEFAULTS: Mapping[str, str] = {
    # The tracker retries MLflow requests itself; the library's own retries would block for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # Without this, torch.cuda.is_available() initialises CUDA, which must not happen before the fork.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}

FORK_SERVER_VARIABLES: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's allocator
}
"""For the fork server alone: thread pools do not survive a fork."""


def machine_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Selects the agent's variables for ranks on a cluster: locale, paths, proxies, numerical libraries."""
    return {
        name: value
        for name, value in variables.items()
        if name in _MACHINE_NAMES or name.startswith(_MACHINE_PREFIXES)
    }


def storage_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the credentials and settings of S3, for ranks whose checkpoints are in object storage."""
    return {name: value for name, value in variables.items() if name.startswith(_STORAGE_PREFIX)}


def user_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables for ranks started from a user's shell: all except the service's own."""
    return {name: value for name, value in variables.items() if not name.startswith(_SERVICE_PREFIXES)}


def rank_environment(
    base: Mapping[str, str], storage: Mapping[str, str], order: Order, assignment: RankAssignment
) -> dict[str, str]:
    """Returns the whole environment of one rank.

    base: the result of `machine_variables` or `user_variables`. storage: the result of `storage_variables`,
    used only if the order has a checkpoint URL. The order's own variables and secrets win over all others.
    Raises BuildError if they would replace the credentials with which the order's checkpoints are stored.
    """
    resources = order.spec["resources"]
    in_storage = order.checkpoints is not None or "://" in (order.start_from or "")
    if in_storage:
        _raise_if_of_storage([*order.variables, *order.secrets])
    environment = {**RANK_DEFAULTS, **base, **(storage if in_storage else {})}
    if order.runs_script:
        for name in _OF_THE_TRACKER:  # a script has MLflow's own defaults
            if name not in base:
                del environment[name]
        environment |= script_variables(order, assignment)
    elif resources["gpus_per_worker"]:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(assignment.gpus)
    if not environment.get("OMP_NUM_THREADS"):
        environment["OMP_NUM_THREADS"] = str(max(int(resources["cpus_per_worker"]), 1))
    if order.packages is not None:
        # For processes that the ranks start.
        environment["PYTHONPATH"] = order.packages
        environment["PATH"] = os.pathsep.join(
            filter(None, [_scripts(order.packages), environment.get("PATH")])
        )
    return _with_direct_loopback({**environment, **order.variables, **order.secrets})


def _with_direct_loopback(environment: dict[str, str]) -> dict[str, str]:
    """Adds this machine to the addresses that a proxy is not asked for, because none can reach it.

    MLflow may listen there, and its client would try again for minutes.
    """
    if not environment.keys() & _PROXIES:
        return environment
    given = [environment.get(name, "") for name in ("NO_PROXY", "no_proxy")]
    return {
        **environment,
        **dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(filter(None, [*given, _LOOPBACK]))),
    }


def _raise_if_of_storage(names: Iterable[str]) -> None:
    for name in sorted(names):
        if name.startswith(_STORAGE_PREFIX):
            raise BuildError(
                f"environment.{name}",
                "this service stores checkpoints in S3 and reads its credentials from the same variables; "
                "give yours another name, and pass them to your client in your code",
            )


def _scripts(packages: str) -> str:
    """Returns the folder of the commands in the virtual environment that has these packages."""
    prefix = next(each for each in Path(packages).parents if (each / "pyvenv.cfg").exists())
    return str(prefix / "bin")
