"""Tags in MLflow that say where a run comes from, and what kind of experiment it is in. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

EXPERIMENT_KIND = ("mlflow.experimentKind", "custom_model_development")
"""The tag that makes MLflow open an experiment on its training runs, not on evaluations of LLMs."""


def source_tags(spec: Mapping[str, Any], kind: Literal["JOB", "LOCAL"]) -> dict[str, str]:
    """Returns MLflow's own tags of a run's source: its name and type, the user, the commit if known.

    The run of a script has a tag that says so, too.

    spec: the job's, as JSON. kind: MLflow's type of source.
    """
    source = spec.get("source") or {}
    dirty, script = source.get("dirty"), spec.get("script")
    tags = {
        "mlflow.source.name": script["path"] if script else spec["model"]["class_path"],
        "mlflow.source.type": kind,
        "mlflow.user": source.get("user"),
        "mlflow.source.git.commit": source.get("commit"),
        "mlflow.source.git.repoURL": source.get("url"),
        "mlflow.source.git.dirty": None if dirty is None else str(dirty).lower(),
        "syncbn.script": f"{script['path']}: its result may depend on the number of workers"
        if script
        else None,
    }
    return {key: value for key, value in tags.items() if value is not None}
