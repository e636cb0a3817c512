"""Batch normalisation over the global batch, on any device with a torch.distributed backend."""

from sync_bn._handshake import DesynchronizedError, check_ranks
from sync_bn.convert import convert_sync_batchnorm, revert_sync_batchnorm
from sync_bn.diagnostics import observe
from sync_bn.groups import process_group_of
from sync_bn.layer import SyncBatchNorm
from sync_bn.losses import global_mean
from sync_bn.precise import precise_bn
from sync_bn.renorm import BatchRenorm, Correction, convert_batch_renorm

__all__ = [
    "BatchRenorm",
    "Correction",
    "DesynchronizedError",
    "SyncBatchNorm",
    "check_ranks",
    "convert_batch_renorm",
    "convert_sync_batchnorm",
    "global_mean",
    "observe",
    "precise_bn",
    "process_group_of",
    "revert_sync_batchnorm",
]
