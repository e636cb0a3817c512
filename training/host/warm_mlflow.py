"""What the fork server imports before `training.host.warm` where runs are tracked in MLflow."""

from __future__ import annotations

import mlflow.pytorch
import mlflow.system_metrics.system_metrics_monitor

import training.mlflow_tracking
import training.system_metrics

__all__ = ["mlflow", "training"]
