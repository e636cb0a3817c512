"""SyncBatchNorm: the module with its buffers, its checks and its process group."""

from copy import deepcopy
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sync_bn._arithmetic import Moments
from sync_bn._class_swap import convert
from sync_bn._function import batch_norm_over_ranks


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation over the samples of all ranks of a process group, as if one process had them all.

    In training, for each channel c, with the mean and the biased variance over the values of all ranks::

        y = (x - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c]

    (Ioffe & Szegedy 2015, Algorithm 1). Arguments, parameters, buffers and state_dict are those of
    `torch.nn.SyncBatchNorm`; the running variance is the unbiased one of the global batch.

    Input and output are (N, C, ...), of any floating dtype and memory format, on any device whose
    torch.distributed backend can all-reduce float64 (CPU with gloo, CUDA with NCCL). N may differ between
    ranks and be 0. If it is 0 on all ranks nothing is updated.

    In training every rank of the group must call forward, and backward of the result, as often and in the
    same order: each blocks in one all-reduce. Nothing else is exchanged:

    - in evaluation the running statistics are used. With `track_running_stats=False` there are none, and
      evaluation normalises by this rank's own batch, as `torch.nn.SyncBatchNorm` does;
    - without an initialised torch.distributed, or with one rank in the group, it is plain BatchNorm.

    `process_group=None` is the default group. A deep copy keeps the group; pickling drops it, because a
    group is of one process: the loaded layer has the default group. Second derivatives are not implemented.

    Raises ValueError for an input that is not (N, num_features, ...), on a rank outside the group, and on
    every rank if the global batch has one value per channel, whose variance is not defined.
    """

    process_group: dist.ProcessGroup | None
    _original_class: type[_BatchNorm] | None = None
    _original_process_group: dist.ProcessGroup | None = None
    _last_input_dim: int = 4

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.process_group = process_group

    @classmethod
    def convert_sync_batchnorm(
        cls, module: nn.Module, process_group: dist.ProcessGroup | None = None
    ) -> nn.Module:
        """See `sync_bn.convert_sync_batchnorm`."""
        return convert(module, cls, process_group)

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        self._last_input_dim = input.dim()
        if not self.training or self._world_size() == 1:
            return super().forward(input)
        y, moments = batch_norm_over_ranks(input, self.weight, self.bias, self.eps, self.process_group)
        self._check_global_count(input, moments.n)
        if self.track_running_stats:
            self._update_running_statistics(moments)
        return y

    def _world_size(self) -> int:
        if not (dist.is_available() and dist.is_initialized()):
            return 1
        world_size = dist.get_world_size(self.process_group)
        if world_size < 1:
            raise ValueError(
                f"SyncBatchNorm({self.num_features}) runs on rank {dist.get_rank()}, which is not in its "
                "process_group. Give each rank a group that it is a member of."
            )
        return world_size

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(
                f"SyncBatchNorm({self.num_features}) got an input of shape {tuple(input.shape)}; "
                f"expected (N, {self.num_features}, ...): samples, channels, any further dimensions."
            )

    def _check_global_count(self, input: Tensor, n: Tensor) -> None:
        # Reading the count waits for the device. If it is 1 in all, every rank has at most 1 itself, so every
        # rank looks and all raise alike; ranks with more never wait.
        if input.numel() <= self.num_features and n == 1:
            raise ValueError(
                f"SyncBatchNorm({self.num_features}) needs more than 1 value per channel in training, but "
                f"the batches of all {self._world_size()} ranks together have 1; this rank's has the shape "
                f"{tuple(input.shape)}. Use a larger global batch, or eval()."
            )

    @torch.no_grad()
    def _update_running_statistics(self, moments: Moments) -> None:
        """running = (1 - momentum)·running + momentum·new; momentum=None is the average of all batches."""
        assert self.num_batches_tracked is not None
        mean, var, n = moments
        # Decided on the device, because the host does not know whether all ranks were empty.
        any_values = n > 0
        self.num_batches_tracked.add_(any_values)
        momentum = 1 / self.num_batches_tracked.double() if self.momentum is None else self.momentum
        unbiased_var = var * (n / (n - 1).clamp(min=1))
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased_var)):
            assert running is not None
            old = running.double()
            running.copy_(torch.where(any_values, torch.lerp(old, new, momentum), old))

    def __getstate__(self) -> dict[str, Any]:
        groups = {"process_group", "_original_process_group"} & self.__dict__.keys()
        return {**self.__dict__, **dict.fromkeys(groups)}

    def __copy__(self) -> Self:
        copy = type(self).__new__(type(self))
        copy.__dict__.update(self.__dict__)
        return copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A group cannot be copied, and need not: the copy meets the same ranks.
        memo.update({id(group): group for group in (self.process_group, self._original_process_group)})
        copy = type(self).__new__(type(self))
        memo[id(self)] = copy
        copy.__dict__.update(deepcopy(self.__dict__, memo))
        return copy
