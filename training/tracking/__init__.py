"""Tracking of metrics: to a JSON Lines file, and to MLflow through a spool; and MLflow for user code.

May import `console`, `errors`, `internals`, `metric_names`, `protocol`, `run_dir`, `spec`.
"""
