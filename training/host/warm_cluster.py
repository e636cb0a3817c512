"""Preload of the fork server on a cluster, in addition: MLflow, object storage, built-in data.

A single local run would spend more time on these imports than it saves.
"""

from __future__ import annotations

import git
import mlflow.models.display_utils
import mlflow.pyfunc
import mlflow.pytorch
import mlflow.system_metrics.system_metrics_monitor
import mlflow.tracking.request_header.registry
import mlflow.utils.requirements_utils
import sklearn.datasets.data
import sklearn.datasets.descr

import training.checkpoints.object_store
import training.tracking.active_run
import training.tracking.mlflow_tracker
import training.tracking.system_metrics

__all__ = ["git", "mlflow", "sklearn", "training"]

# Scans the installed packages, which MLflow caches: saves half a second of a job's first `log_model`.
mlflow.utils.requirements_utils.warn_dependency_requirement_mismatches(["torch"])
