"""The environment of a job: what the machine gives to every program, and what the job was given. Pure.

Variables of the service that started it, secrets above all, are not among them.
"""

from __future__ import annotations

from collections.abc import Mapping

from training.protocol import Order, RankAssignment

_OF_THE_MACHINE = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
        "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
        "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
        "PYTHONDONTWRITEBYTECODE",
    }
)  # fmt: skip
_KINDS_OF_THE_MACHINE = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "OMP_", "MKL_", "KMP_", "OPENBLAS_")
_OF_STORAGE = "AWS_"
_OF_THE_SERVICE = ("SYNCBN_", "RAY_")

OURS: Mapping[str, str] = {
    # A rank asks MLflow again by itself; the library's own retries would block for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # Otherwise to ask whether there is a GPU would touch it, which must not happen before the fork.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}

WARM: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's allocator
}
"""For the process that ranks are forked from: a pool of threads would not survive the fork."""


def of_the_machine(variables: Mapping[str, str]) -> dict[str, str]:
    """Of an agent's variables those for ranks on a cluster: locale, paths, proxies, numerical libraries."""
    return {
        name: value
        for name, value in variables.items()
        if name in _OF_THE_MACHINE or name.startswith(_KINDS_OF_THE_MACHINE)
    }


def of_storage(variables: Mapping[str, str]) -> dict[str, str]:
    """For ranks whose checkpoints are in object storage, beside those of the machine."""
    return {name: value for name, value in variables.items() if name.startswith(_OF_STORAGE)}


def of_the_user(variables: Mapping[str, str]) -> dict[str, str]:
    """For ranks that a user starts from a shell, without the service: all that is not the service's."""
    return {name: value for name, value in variables.items() if not name.startswith(_OF_THE_SERVICE)}


def of_rank(
    base: Mapping[str, str], storage: Mapping[str, str], order: Order, assignment: RankAssignment
) -> dict[str, str]:
    """`base` and `storage` as the functions above give them."""
    asked = order.spec["resources"]
    found = {**OURS, **base, **(storage if order.checkpoints is not None else {})}
    if asked["gpus_per_worker"]:
        found["CUDA_VISIBLE_DEVICES"] = ",".join(assignment.gpus)
    found.setdefault("OMP_NUM_THREADS", str(max(int(asked["cpus_per_worker"]), 1)))
    return {**found, **order.variables}
