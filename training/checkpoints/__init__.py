"""Stores for a run's checkpoints, in a folder or in S3: a checkpoint exists completely or not at all.

May import `backoff`.
"""
