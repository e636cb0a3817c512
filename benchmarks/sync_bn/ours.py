"""The layer's code path for several ranks, on one rank."""

from torch import Tensor

from sync_bn import SyncBatchNorm


class DistributedSyncBatchNorm(SyncBatchNorm):
    """Takes the code path for several ranks in a group of one too, instead of plain BatchNorm's."""

    def _is_plain(self) -> bool:
        return False


class LocalSyncBatchNorm(DistributedSyncBatchNorm):
    """Takes that path without its all-reduces: the work of one rank alone."""

    def _normalised(
        self, input: Tensor, residual: Tensor | None, sample_weight: Tensor | None, *, synchronized: bool
    ) -> Tensor:
        del synchronized
        return super()._normalised(input, residual, sample_weight, synchronized=False)
