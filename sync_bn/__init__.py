"""Batch normalisation over the global batch, on any device."""

from sync_bn.convert import convert_sync_batchnorm, revert_sync_batchnorm
from sync_bn.layer import SyncBatchNorm

__all__ = ["SyncBatchNorm", "convert_sync_batchnorm", "revert_sync_batchnorm"]
