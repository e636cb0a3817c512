"""The layer as it works among ranks, where there is only one."""

from sync_bn import SyncBatchNorm


class DistributedSyncBatchNorm(SyncBatchNorm):
    """Takes the way of many ranks in a group of one too, where it would be torch's layer."""

    def _is_plain(self) -> bool:
        return False
