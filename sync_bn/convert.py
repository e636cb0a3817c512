"""Converting a model to SyncBatchNorm and back, in place and without loss."""

import torch.distributed as dist
from torch import nn

from sync_bn._class_swap import convert, revert
from sync_bn.layer import SyncBatchNorm


def convert_sync_batchnorm(module: nn.Module, process_group: dist.ProcessGroup | None = None) -> nn.Module:
    """Make every batch normalisation in `module`, itself included, a `SyncBatchNorm`; returns `module`.

    Only the class of a layer changes. Parameters, buffers, hooks, flags, parametrizations and layers shared
    between several places are the same objects as before, so an optimizer may exist already. For its messages
    each layer learns its name in `module`; converting a larger module later gives it the longer one.

    Converted are `nn.BatchNorm1d`, `2d`, `3d`, `torch.nn.SyncBatchNorm`, their lazy twins, whose first batch
    is synchronized already, and subclasses that compute the same; nothing else is touched. A `SyncBatchNorm`
    stays as it is. `process_group=None` is the default group, or for a layer that has a group already, that
    one; `process_group_of` makes others.

    Every rank must convert the same layers. It exchanges nothing, and calling it again changes nothing.

    Raises, before anything is changed, and naming the layer:

    - TypeError: a subclass has a forward of its own (a fused activation, say), or another method of
      nn.Module or a batch normalisation, or an attribute that `SyncBatchNorm` uses. It would be lost.
    - ValueError: num_features is 0, and neither parameters nor buffers tell it either.
    """
    return convert(module, SyncBatchNorm, process_group)


def revert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Undo `convert_sync_batchnorm`: every layer gets back its very class, and its own group if it had one.

    A lazy layer that has seen its first batch since becomes what torch would have made of it. A
    `SyncBatchNorm` that was constructed as such becomes the torch class that accepts the inputs it has seen
    last: `nn.BatchNorm1d` for (N, C) and (N, C, L), `nn.BatchNorm3d` for (N, C, D, H, W), otherwise
    `nn.BatchNorm2d`. What was learned since stays. Returns `module`; in a model without any, does nothing.

    Raises TypeError, before anything is changed, and naming the layer, if one has an `activation`, which no
    torch class could apply.
    """
    return revert(module, SyncBatchNorm)
