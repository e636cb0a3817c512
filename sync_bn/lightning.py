"""The Lightning plug-in: `Trainer(plugins=[SyncBatchNormPlugin()])`, instead of `sync_batchnorm=True`."""

import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import nn

from sync_bn.convert import convert_sync_batchnorm, revert_sync_batchnorm
from sync_bn.layer import SyncBatchNorm
from sync_bn.renorm import DEFAULT_CORRECTION, Correction, convert_batch_renorm


class SyncBatchNormPlugin(LayerSync):
    """Converts the model's BatchNorm layers before fitting, and reverts the ones it converted afterwards.

    process_group: the ranks that share statistics; None: the default group, which Lightning's strategy sets
        up. Raises the errors of `convert_sync_batchnorm`.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        self.process_group = process_group
        self._converted_before: set[nn.Module] = set()

    def apply(self, model: nn.Module) -> nn.Module:
        """Converts `model` in place and returns it. Lightning calls it before fitting."""
        self._converted_before = _layers(model)
        return self._convert(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Reverts in place the layers that `apply` converted, and returns `model`."""
        for layer in _layers(model) - self._converted_before:
            revert_sync_batchnorm(layer)
        return model

    def _convert(self, model: nn.Module) -> nn.Module:
        return convert_sync_batchnorm(model, self.process_group)


class BatchRenormPlugin(SyncBatchNormPlugin):
    """The same with `BatchRenorm`: a plain nn.BatchNorm before and after fitting.

    Arguments and errors are those of `convert_batch_renorm`.
    """

    def __init__(
        self, process_group: dist.ProcessGroup | None = None, correction: Correction = DEFAULT_CORRECTION
    ) -> None:
        super().__init__(process_group)
        self.correction = correction

    def _convert(self, model: nn.Module) -> nn.Module:
        return convert_batch_renorm(model, self.process_group, self.correction)


def _layers(model: nn.Module) -> set[nn.Module]:
    return {module for module in model.modules() if isinstance(module, SyncBatchNorm)}
