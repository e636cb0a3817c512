"""The SyncBatchNorm module: its parameters, buffers, input checks and process group."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, Protocol, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import handle_torch_function, has_torch_function

from sync_bn import _arithmetic, _handshake, _native, _sums, _triton
from sync_bn._activation import activation_named
from sync_bn._arithmetic import Moments
from sync_bn._class_swap import convert
from sync_bn._function import Call, Normalised, Tensors, batch_norm_over_ranks

# Module.compile sets this attribute. It calls the original module, so copies must not have it.
_COMPILED = "_compiled_call_impl"


class Observer(Protocol):
    """Receives the statistics of each training step of a layer."""

    def record(self, layer: "SyncBatchNorm", moments: Moments, local_sums: Tensor) -> None:
        """Called before the running statistics are updated.

        moments: of the global batch. local_sums: this rank's [Σx, Σx², n], (2C+1,) float64.
        """


class OverParts(Protocol):
    """Computes a layer in training over the parts of a batch, in place of the collectives between ranks.

    For programs that run a model on several parts of a batch in one process.
    """

    @property
    def updates(self) -> bool:
        """Whether the running part is the one that updates the running statistics."""

    def __call__(self, tensors: Tensors, call: Call) -> Normalised:
        """Returns the output for the running part, and the moments of the whole batch."""


_over_parts: OverParts | None = None


@contextmanager
def over_parts(over: OverParts) -> Iterator[None]:
    """Lets all layers be computed by `over` in training."""
    global _over_parts
    before, _over_parts = _over_parts, over
    try:
        yield
    finally:
        _over_parts = before


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation over the samples of all ranks of a process group, as if one process had them all.

    In training, for each channel c, with the mean and the biased variance over the values of all ranks::

        y = (x - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c]

    (Ioffe & Szegedy 2015, Algorithm 1). Arguments, parameters, buffers and state_dict are those of
    `torch.nn.SyncBatchNorm`; the running variance is the unbiased one of the global batch.

    Input and output are (N, C, ...), of any floating dtype and memory format, on any device whose
    torch.distributed backend can all-reduce float64 (CPU with gloo, CUDA with NCCL). N may differ between
    ranks and may be 0. If it is 0 on all ranks, no buffer changes.

    In training every rank of the group must call forward, and backward of the result, equally often and in
    the same order: each blocks in one all-reduce. In the first steps the ranks check that, and raise
    `DesynchronizedError` if it is not so: see `check_ranks`. There is no communication

    - in evaluation, which uses the running statistics. With `track_running_stats=False` it normalises by this
      rank's own batch, as `torch.nn.SyncBatchNorm` does;
    - without an initialised torch.distributed, or with one rank in the group: it is plain BatchNorm then.

    - process_group: None: the default group. A deep copy keeps the group. Pickling drops it, because a group
      belongs to one process: a loaded layer has the default group.
    - bias: whether there is a bias, if `affine`.
    - activation: None, "relu", "leaky_relu" (slope 0.01) or "silu", fused with the normalisation: no
      intermediate tensor is stored, and backward recomputes what it needs.
    - counts_samples: an attribute, True. While it is False, this rank's samples are normalised but do not
      count in the statistics, as with a `sample_weight` of zeros.

    A forward within a backward pass counts as the recomputation of a checkpointed forward and does not update
    the running statistics again. Second derivatives are those of the layer's definition, in float64.

    Raises ValueError if the input is not (N, num_features, ...), in training on a rank outside the group, for
    an unknown `activation`, and, on every rank, if the global batch has one value per channel, since its
    variance is undefined. Within torch.compile the last is a RuntimeError, and on a GPU an asynchronous
    device assertion. Raises RuntimeError if a parameter or buffer has the wrong size or device.
    """

    process_group: dist.ProcessGroup | None
    activation: str | None = None
    _kind = "SyncBatchNorm"
    _original_class: type[_BatchNorm] | None = None
    _original_process_group: dist.ProcessGroup | None = None
    _layer_name: str | None = None
    _last_input_dim: int = 4
    _check_key: str | None = None
    _observer: Observer | None = None
    counts_samples: bool = True

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
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:  # torch's layers have this argument since 2.13
            self.register_parameter("bias", None)
        activation_named(activation)
        self.process_group = process_group
        if activation is not None:
            self.activation = activation

    @classmethod
    def convert_sync_batchnorm(
        cls, module: nn.Module, process_group: dist.ProcessGroup | None = None
    ) -> nn.Module:
        """Does the same as `sync_bn.convert_sync_batchnorm`, with `cls` as the class of the layers.

        Converts `module` in place and returns it. process_group: the ranks that share statistics; None: the
        default group, or the group that a layer has already. Raises the errors of that function.
        """
        return convert(module, cls, process_group)

    def forward(
        self, input: Tensor, residual: Tensor | None = None, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Returns activation(batch_norm(input) + residual), with the shape and dtype of input.

        - residual: a tensor of input's shape; None: 0.
        - sample_weight: the weight of each sample, (N,), or of each position, (N, ...) without the channels,
          in the statistics of training, for example a mask for a padded batch. Any dtype; True is 1. None: 1
          for all. All of the output is normalised, whatever the weights; no gradient flows into them. Their
          sum over all ranks must be above 1, or 0, which updates nothing.

        Raises ValueError for another shape of residual or sample_weight; see the class for other errors.
        """
        self._check_input_dim(input)
        if not (residual is sample_weight is None):
            self._check_extras(input, residual, sample_weight)
        if self._last_input_dim != input.dim():
            self._last_input_dim = input.dim()
        if self.training:
            plain = self._is_plain()
            extras = self._observer or self.activation or not (residual is sample_weight is None)
            if not plain or extras or input.numel() == 0:
                return self._normalised(input, residual, sample_weight, synchronized=not plain)
            return self._recompute_plain(input) if _is_recomputation() else super().forward(input)
        if self.running_mean is None and self.running_var is None and sample_weight is not None:
            return self._normalised(input, residual, sample_weight, synchronized=False)
        y = super().forward(input)
        y = y if residual is None else (y + residual).to(input.dtype)
        activation = activation_named(self.activation)
        return y if activation is None else activation(y)

    def _recompute_plain(self, input: Tensor) -> Tensor:
        """Recomputes a forward of plain BatchNorm without updating the running statistics."""
        tracked = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        mean, var = (None if running is None else running.clone() for running in tracked)
        return F.batch_norm(input, mean, var, self.weight, self.bias, training=True, eps=self.eps)

    def extra_repr(self) -> str:
        """Returns the arguments that `repr` shows, on one line; `activation` only if there is one."""
        arguments: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{arguments}, activation={self.activation}" if self.activation else arguments

    def _is_plain(self) -> bool:
        """Whether the group has only this rank, and the batch is not in parts."""
        return _over_parts is None and self._world_size() == 1

    def _normalised(
        self,
        input: Tensor,
        residual: Tensor | None,
        sample_weight: Tensor | None,
        *,
        synchronized: bool,
    ) -> Tensor:
        """Computes the layer in training, for tensors of any class.

        To a subclass with `__torch_function__` (MONAI's MetaTensor) this is a torch operation: the subclass
        handles the call and wraps the plain result. The autograd function itself gets plain tensors, because
        autograd refuses in-place operations on views that were created within one.
        """
        given = tuple(tensor for tensor in (input, residual, sample_weight) if tensor is not None)
        if has_torch_function(given):
            result: Tensor = handle_torch_function(
                SyncBatchNorm._normalised,
                given,
                self,
                input,
                residual,
                sample_weight,
                synchronized=synchronized,
            )
            return result
        x = _as_plain(input)
        self._check_per_channel(x)
        if not self.counts_samples:
            sample_weight = x.new_zeros(len(x))
        weights = None if sample_weight is None else _broadcastable(_as_plain(sample_weight), x)
        residual = None if residual is None else _as_plain(residual)
        tensors = Tensors(x, self.weight, self.bias, residual, weights)
        handshake, label = None, ""
        if synchronized and _over_parts is None and not torch.compiler.is_compiling():
            if not self._is_checked():
                handshake = partial(_handshake.handshake, self.process_group, self._description(tensors))
            elif _handshake.policy.steps > 0:
                label = self._label()
        activation, observed = activation_named(self.activation), self._observer is not None
        call = Call(self.eps, activation, synchronized, self.process_group, handshake, observed, label)
        z, moments, local_sums = self._over_ranks(tensors, call)
        self._check_global_count(x, moments.n, weighted=weights is not None)
        if self.training and not _is_recomputation():
            if handshake is not None:
                self._count_step()
            if self._observer is not None and local_sums is not None:
                self._observer.record(self, moments, local_sums)
            if self.track_running_stats and (_over_parts is None or _over_parts.updates):
                self._update_running_statistics(moments)
        return z

    def _over_ranks(self, tensors: Tensors, call: Call) -> Normalised:
        """Computes the output and the moments, before the running statistics are updated."""
        return (_over_parts or batch_norm_over_ranks)(tensors, call)

    def _is_checked(self) -> bool:
        if self._check_key is None:
            self._check_key = _handshake.new_key()
        is_new_group = _handshake.policy.steps > 0 and not _sums.is_prepared(self.process_group)
        return _handshake.is_checked(self._check_key) and not is_new_group

    def _count_step(self) -> None:
        assert self._check_key is not None
        _handshake.count_step(self._check_key)

    def _description(self, tensors: Tensors) -> str:
        """Returns the text that the ranks compare in the handshake: see `check_ranks`."""
        differentiable = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        return (
            f"{self._label()}, input of {str(tensors.x.dtype).removeprefix('torch.')}, "
            f"{'gradients' if differentiable else 'no gradients'} needed"
        )

    def _label(self) -> str:
        label = f"{self._kind}({self.num_features})"
        return f"{self._layer_name} ({label})" if self._layer_name else label

    def _world_size(self) -> int:
        if not (dist.is_available() and dist.is_initialized()):
            return 1
        world_size = dist.get_world_size(self.process_group)
        if world_size < 1:
            raise ValueError(
                f"{self._label()} runs on rank {dist.get_rank()}, which is not in its process_group. "
                "Give each rank a group that it is a member of."
            )
        return world_size

    def _check_input_dim(self, input: Tensor) -> None:
        shape = input.shape
        if len(shape) < 2 or shape[1] != self.num_features:
            raise ValueError(
                f"{self._label()} got an input of shape {tuple(shape)}; "
                f"expected (N, {self.num_features}, ...): samples, channels, any further dimensions."
            )

    def _check_extras(self, input: Tensor, residual: Tensor | None, sample_weight: Tensor | None) -> None:
        shape = tuple(input.shape)
        if residual is not None and residual.shape != input.shape:
            raise ValueError(
                f"{self._label()} got a residual of shape {tuple(residual.shape)}; "
                f"expected the input's, {shape}."
            )
        expected = shape[:1], (shape[0], *shape[2:])
        if sample_weight is not None and sample_weight.shape not in expected:
            raise ValueError(
                f"{self._label()} got a sample_weight of shape {tuple(sample_weight.shape)}; expected "
                f"{expected[0]}, a weight for each sample, or {expected[1]}, one for each position."
            )

    def _check_per_channel(self, input: Tensor) -> None:
        """Raises the errors of `nn.BatchNorm*d` before any rank waits for this one in a collective."""
        device = input.device
        for name in ("weight", "bias", "running_mean", "running_var"):
            values = getattr(self, name)
            if values is None:
                continue
            if values.shape != (self.num_features,):
                raise RuntimeError(
                    f"{name} should contain {self.num_features} elements not {values.numel()}: "
                    f"{self._label()} has one of shape {tuple(values.shape)}"
                )
            if values.device != device:
                raise RuntimeError(
                    f"{self._label()} got an input on {device}, but its {name} is on {values.device}. "
                    "Move the model and its input to one device."
                )

    def _check_global_count(self, input: Tensor, n: Tensor, *, weighted: bool) -> None:
        # If the global batch has one value, no rank has more than one. So a rank with more skips the check,
        # and the check does not wait for the device, which raises by itself.
        if input.numel() > self.num_features and not weighted:
            return
        enough = (n == 0) | (n > 1)
        if torch.compiler.is_compiling():  # the compiler needs a constant message
            torch._assert_async(enough, "SyncBatchNorm needs more than 1 value per channel over all ranks")
            return
        message = (
            f"{self._label()} needs more than 1 value per channel in training, but the batches of all "
            f"{self._world_size()} ranks together have 1 or less; this rank's has the shape "
            f"{tuple(input.shape)}. Use a larger global batch, or eval()."
        )
        try:
            torch._assert_async(enough, message)
        except RuntimeError:
            raise ValueError(message) from None

    def _update_running_statistics(self, moments: Moments) -> None:
        buffers = self.running_mean, self.running_var, self.num_batches_tracked
        if torch.compiler.is_compiling() or not (
            _native.update_running_statistics(*buffers, self.momentum, moments)
            or _triton.update_running_statistics(*buffers, self.momentum, moments)
        ):
            with torch.no_grad():
                _arithmetic.update_running_statistics(*buffers, self.momentum, moments)

    def __getstate__(self) -> dict[str, Any]:
        of_this_process = {"process_group", "_original_process_group", "_observer"} & self.__dict__.keys()
        state = {**self.__dict__, **dict.fromkeys(of_this_process)}
        state.pop(_COMPILED, None)
        return state

    def __copy__(self) -> Self:
        copy = type(self).__new__(type(self))
        copy.__dict__.update({name: value for name, value in self.__dict__.items() if name != _COMPILED})
        return copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A group cannot be copied, and need not be: the copy has the same ranks. The copy is not observed.
        memo.update({id(group): group for group in (self.process_group, self._original_process_group)})
        copy = type(self).__new__(type(self))
        memo[id(self)] = copy
        state = {k: v for k, v in self.__dict__.items() if k not in ("_observer", _COMPILED)}
        copy.__dict__.update(deepcopy(state, memo))
        return copy


def _as_plain(tensor: Tensor) -> Tensor:
    """Returns a plain Tensor with the same data, for a subclass."""
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def _is_recomputation() -> bool:
    """Whether a backward pass is running, which then recomputes a checkpointed forward."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _broadcastable(sample_weight: Tensor, input: Tensor) -> Tensor:
    """Returns weights of shape (N,) or (N, ...) as (N, 1, ...) in the compute dtype."""
    spatial = sample_weight.shape[1:] if sample_weight.dim() > 1 else [1] * (input.dim() - 2)
    dtype = torch.promote_types(input.dtype, torch.float32)
    return sample_weight.detach().to(dtype).reshape(len(input), 1, *spatial)
