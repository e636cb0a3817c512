"""The plug-in for Lightning: `Trainer(plugins=[SyncBatchNormPlugin()])`, without `sync_batchnorm=True`."""

import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import nn

from sync_bn.convert import convert_sync_batchnorm, revert_sync_batchnorm


class SyncBatchNormPlugin(LayerSync):
    """Converts the model before it is fitted and reverts it afterwards, as `convert_sync_batchnorm` does.

    `process_group=None` is the default group, which Lightning's strategy sets up.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        self.process_group = process_group

    def apply(self, model: nn.Module) -> nn.Module:
        return convert_sync_batchnorm(model, self.process_group)

    def revert(self, model: nn.Module) -> nn.Module:
        return revert_sync_batchnorm(model)
