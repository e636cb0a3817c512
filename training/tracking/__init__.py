"""Tracking of metrics: to a JSON Lines file, and to MLflow through a spool.

May import `errors`, `protocol`.
"""
