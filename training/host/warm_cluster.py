"""What the fork server of a cluster imports besides: MLflow, object storage, what built-in data needs.

For a single run it would take longer to import all of that than what the run uses of it.
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

# Looks for what is installed, half a second that a model's first `log_model` would take; MLflow keeps it.
mlflow.utils.requirements_utils.warn_dependency_requirement_mismatches(["torch"])
