"""Preload of the fork server on a cluster, in addition: MLflow, object storage, built-in data.

A single local run would spend more time on these imports than it saves.
"""

from __future__ import annotations

import mlflow.pytorch
import mlflow.system_metrics.system_metrics_monitor
import mlflow.utils.requirements_utils
import sklearn.datasets

import training.checkpoints.object_store
import training.tracking.mlflow_tracker
import training.tracking.system_metrics

__all__ = ["mlflow", "sklearn", "training"]

# Scans the installed packages, which MLflow caches: saves half a second of a job's first `log_model`.
mlflow.utils.requirements_utils.warn_dependency_requirement_mismatches(["torch"])
