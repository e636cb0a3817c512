"""Batch renormalisation over the samples of all ranks: `BatchRenorm`, and conversion of a model to it."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sync_bn._arithmetic import Moments, compute_dtype, per_channel
from sync_bn._class_swap import convert
from sync_bn._function import Call, Normalised, Tensors, batch_norm_over_ranks
from sync_bn.layer import SyncBatchNorm, _is_recomputation


class Correction(NamedTuple):
    """How far `BatchRenorm` may correct, and from when on. Defaults: Ioffe 2017, section 4.

    In the first `plain_steps` training batches of a layer r = 1 and d = 0, which is `SyncBatchNorm`. Then the
    limit of r grows linearly from 1 to r_max, reached at batch `r_steps`, and that of d from 0 to d_max at
    batch `d_steps`.
    """

    r_max: float = 3.0
    d_max: float = 5.0
    plain_steps: int = 5000
    r_steps: int = 40_000
    d_steps: int = 25_000


DEFAULT_CORRECTION = Correction()


class _Before(NamedTuple):
    """What a forward has seen: the mean of its batch, and the running statistics before it. All (C,)."""

    mean: Tensor
    running_mean: Tensor
    running_var: Tensor
    batches: Tensor


class BatchRenorm(SyncBatchNorm):
    """`SyncBatchNorm`, corrected so that training computes what evaluation does.

    In training, with the mean and the biased variance over the values of all ranks of the group::

        σ = sqrt(running_var + eps)
        r = clip(sqrt(var + eps) / σ, 1/r_limit, r_limit)
        d = clip((mean - running_mean) / σ, -d_limit, d_limit)
        y = ((x - mean) / sqrt(var + eps) · r + d) · weight + bias

    (Ioffe, "Batch Renormalization", 2017, Algorithm 1), with the running statistics before this batch, and
    r and d as constants for the gradient. Where neither is clipped this is what evaluation computes,
    y = (x - running_mean) / σ · weight + bias. The limits are those of `correction`. Its steps are counted by
    `num_batches_tracked`: batches that the layer has normalised in training, each micro-batch where gradients
    are accumulated. So the state_dict is that of nn.BatchNorm, and the warm-up goes on from it.

    Arguments are those of `SyncBatchNorm`, without `track_running_stats`, which is True, and with
    `correction`. Collectives, residual, sample_weight and errors are those of `SyncBatchNorm`. One rank alone
    computes the same formula. A checkpointed forward can be recomputed if the layer was not called since;
    otherwise it raises RuntimeError.
    """

    _kind = "BatchRenorm"
    correction: Correction = DEFAULT_CORRECTION
    _before: _Before | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        correction: Correction = DEFAULT_CORRECTION,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            process_group=process_group,
            device=device,
            dtype=dtype,
            bias=bias,
            activation=activation,
        )
        self.correction = checked(correction)

    def forward(
        self, input: Tensor, residual: Tensor | None = None, sample_weight: Tensor | None = None
    ) -> Tensor:
        """As `SyncBatchNorm.forward`, with this layer's formula."""
        if not self.training:
            return super().forward(input, residual, sample_weight)
        self._check_input_dim(input)
        self._check_extras(input, residual, sample_weight)
        self._last_input_dim = input.dim()
        return self._normalised(input, residual, sample_weight, synchronized=not self._is_plain())

    def _over_ranks(self, tensors: Tensors, call: Call) -> Normalised:
        x, weight, bias, residual, _ = tensors
        plain = tensors._replace(weight=None, bias=None, residual=None)
        x_hat, moments, local_sums = batch_norm_over_ranks(plain, call._replace(activation=None))
        r, offset = self._r_and_d(moments)
        scale = r if weight is None else r * weight
        offset = offset if weight is None else offset * weight
        offset = offset if bias is None else offset + bias
        dtype = compute_dtype(x)
        scale, offset = (per_channel(values.to(dtype), x) for values in (scale, offset))
        y = torch.addcmul(offset, x_hat.to(dtype), scale)
        y = y if residual is None else y + residual
        z = y if call.activation is None else call.activation(y)
        return Normalised(z.to(x.dtype), moments, local_sums)

    @torch.no_grad()
    def _r_and_d(self, moments: Moments) -> tuple[Tensor, Tensor]:
        before = self._statistics_before(moments)
        sigma = (before.running_var.double() + self.eps).sqrt()
        r_limit, d_limit = _limits(self.correction, before.batches)
        r = (moments.var + self.eps).sqrt() / sigma
        d = (moments.mean - before.running_mean.double()) / sigma
        return torch.clamp(r, 1 / r_limit, r_limit), torch.clamp(d, -d_limit, d_limit)

    def _statistics_before(self, moments: Moments) -> _Before:
        """Returns the running statistics that this forward, or the one that it recomputes, starts from."""
        mean, var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        if mean is None or var is None or batches is None:
            raise RuntimeError(f"{self._label()} has no running statistics, which it normalises by.")
        if torch.compiler.is_compiling():
            return _Before(moments.mean, mean, var, batches)
        if not _is_recomputation():
            self._before = _Before(moments.mean, mean.clone(), var.clone(), batches.clone())
        elif self._before is None or not torch.allclose(self._before.mean, moments.mean, rtol=1e-4):
            raise RuntimeError(
                f"{self._label()} has been called again since the checkpointed forward that is recomputed "
                "now, and its running statistics have changed. Checkpoint no layer that several forwards of "
                "a step share, or use SyncBatchNorm."
            )
        assert self._before is not None
        return self._before

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_before"}


def checked(correction: Correction) -> Correction:
    """Returns it. Raises ValueError if a limit or a step is not possible."""
    r_max, d_max, plain, *full = correction
    if r_max < 1 or d_max < 0 or plain < 0 or min(full) < plain:
        raise ValueError(
            f"{correction} is not possible; expected r_max ≥ 1, d_max ≥ 0, plain_steps ≥ 0, and r_steps and "
            "d_steps ≥ plain_steps."
        )
    return correction


def convert_batch_renorm(
    module: nn.Module,
    process_group: dist.ProcessGroup | None = None,
    correction: Correction = DEFAULT_CORRECTION,
) -> nn.Module:
    """Makes every batch normalisation in `module`, itself included, a `BatchRenorm`. Returns `module`.

    As `convert_sync_batchnorm`, with the same errors; `revert_sync_batchnorm` undoes it. Raises ValueError,
    too, for a layer without running statistics, and if `correction` is not possible. Layers keep their
    `num_batches_tracked`: those of a trained model begin after their first steps.
    """
    checked(correction)
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:
            raise ValueError(
                f"{name or type(layer).__name__!r} has track_running_stats=False, and BatchRenorm normalises "
                "by running statistics. Construct it with track_running_stats=True."
            )
    convert(module, BatchRenorm, process_group)
    for layer in module.modules():
        if isinstance(layer, BatchRenorm):
            layer.correction = correction
    return module


def _limits(correction: Correction, batches: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the limits of r and d, () float64, for a layer that has normalised `batches` batches."""
    r_max, d_max, plain, r_steps, d_steps = correction
    r_share, d_share = (
        ((batches.double() - plain) / (steps - plain)).clamp(0, 1)
        if steps > plain
        else (batches >= plain).double()
        for steps in (r_steps, d_steps)
    )
    return 1 + (r_max - 1) * r_share, d_max * d_share
