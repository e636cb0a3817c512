"""The way out: torch's own layers in place of ours, for a model in evaluation."""

from __future__ import annotations

from torch import nn

from sync_bn import revert_sync_batchnorm
from training.normalisation.ghost import GhostBatchNorm
from training.normalisation.groups import ByChannel
from training.normalisation.own_layer import OwnLayer
from training.normalisation.replacement import become
from training.normalisation.standardised import fold, is_standardised


def with_torchs_layers(model: nn.Module) -> nn.Module:
    """Returns the model, changed in place, so that it needs torch alone and computes the same in evaluation.

    Synchronized, renormalised and ghost BatchNorm become plain BatchNorm, which is what they are in
    evaluation; standardised weights are stored as such; other layers of ours become GraphModules with their
    operations. Names in the state_dict stay.
    """
    model = revert_sync_batchnorm(model)
    for module in list(model.modules()):
        if isinstance(module, GhostBatchNorm):
            module.revert()
        elif is_standardised(module):
            fold(module)
        elif isinstance(module, OwnLayer | ByChannel):
            become(module, module.exported())
    return model
