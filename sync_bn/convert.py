"""Converts the layers of a model to SyncBatchNorm and back, in place."""

import torch.distributed as dist
from torch import nn

from sync_bn._class_swap import convert, revert
from sync_bn.layer import SyncBatchNorm


def convert_sync_batchnorm(module: nn.Module, process_group: dist.ProcessGroup | None = None) -> nn.Module:
    """Makes every batch normalisation in `module`, itself included, a `SyncBatchNorm`. Returns `module`.

    Only the classes of layers change. Parameters, buffers, hooks, flags, parametrizations and shared layers
    stay the same objects, so an optimizer may exist already. Each layer stores its name in `module` for error
    messages; converting a larger module later replaces it by the longer name.

    It converts `nn.BatchNorm1d`, `2d`, `3d`, `torch.nn.SyncBatchNorm`, their lazy variants (which synchronize
    from the first batch), and subclasses that compute the same. It changes no other modules.

    process_group: the ranks that share statistics, see `process_group_of`. None: the default group, or the
        group that a layer has already.

    Every rank must convert the same layers. It does not communicate or block, and is idempotent.

    Raises, naming the layer and before any change:

    - TypeError if a subclass overrides forward (a fused activation, say) or another method of nn.Module or of
      a batch normalisation, or has an attribute that `SyncBatchNorm` uses: it would be lost.
    - ValueError if num_features is 0 and cannot be inferred from parameters or buffers.
    """
    return convert(module, SyncBatchNorm, process_group)


def revert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Undoes `convert_sync_batchnorm`: every layer gets its original class and group back. Returns `module`.

    Parameters and buffers keep their current values. A lazy layer that has had its first batch becomes the
    class that torch would have given it. A layer that was constructed as `SyncBatchNorm` becomes the torch
    class for its last input: `nn.BatchNorm1d` for (N, C) and (N, C, L), `nn.BatchNorm3d` for (N, C, D, H, W),
    otherwise `nn.BatchNorm2d`. Does not communicate or block, and is idempotent.

    Raises TypeError, naming the layer and before any change, if a layer has an `activation`, which no torch
    class applies, or is sharded by itself (`fully_shard`).
    """
    return revert(module, SyncBatchNorm)
