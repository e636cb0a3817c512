"""The plug-in for Lightning: `Trainer(plugins=[SyncBatchNormPlugin()])`, without `sync_batchnorm=True`."""

import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import nn

from sync_bn.convert import convert_sync_batchnorm, revert_sync_batchnorm
from sync_bn.layer import SyncBatchNorm


class SyncBatchNormPlugin(LayerSync):
    """Converts the model before it is fitted, and afterwards reverts what it has converted.

    `process_group=None` is the default group, which Lightning's strategy sets up.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        self.process_group = process_group
        self._there_before: set[nn.Module] = set()

    def apply(self, model: nn.Module) -> nn.Module:
        self._there_before = _layers(model)
        return convert_sync_batchnorm(model, self.process_group)

    def revert(self, model: nn.Module) -> nn.Module:
        for layer in _layers(model) - self._there_before:
            revert_sync_batchnorm(layer)
        return model


def _layers(model: nn.Module) -> set[nn.Module]:
    return {module for module in model.modules() if isinstance(module, SyncBatchNorm)}
