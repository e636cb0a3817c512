"""Converting a model to SyncBatchNorm and back, in place and without loss."""

import torch.distributed as dist
from torch import nn

from sync_bn._class_swap import convert, revert
from sync_bn.layer import SyncBatchNorm


def convert_sync_batchnorm(module: nn.Module, process_group: dist.ProcessGroup | None = None) -> nn.Module:
    """Make every batch normalisation in `module`, itself included, a `SyncBatchNorm`; returns `module`.

    Only the class of a layer changes. Parameters, buffers, hooks, flags, parametrizations and layers shared
    between several places are the same objects as before, so an optimizer may exist already.

    Converted are `nn.BatchNorm1d`, `2d`, `3d`, `torch.nn.SyncBatchNorm` and subclasses with the same forward;
    nothing else is touched. A `SyncBatchNorm` stays as it is. `process_group=None` is the default group, or
    for a layer that has a group already, that one.

    Every rank must convert the same layers. It exchanges nothing, and calling it again changes nothing.

    Raises, before anything is changed, and naming the layer:
        TypeError: a subclass has a forward of its own (a fused activation, say), which would be lost.
        ValueError: a lazy layer has not seen its first batch.
    """
    return convert(module, SyncBatchNorm, process_group)


def revert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Undo `convert_sync_batchnorm`: every layer gets back its very class, and its own group if it had one.

    A `SyncBatchNorm` that was constructed as such becomes the torch class that accepts the inputs it has seen
    last: `nn.BatchNorm1d` for (N, C) and (N, C, L), `nn.BatchNorm3d` for (N, C, D, H, W), otherwise
    `nn.BatchNorm2d`. What was learned since stays. Returns `module`; in a model without any, does nothing.
    """
    return revert(module, SyncBatchNorm)
