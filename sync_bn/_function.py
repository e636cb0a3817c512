"""The autograd functions, with their collectives: one all-reduce forward, one backward.

Second derivatives come from the definition of the layer, written in differentiable operations.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from sync_bn import _arithmetic, _native, _sums, _triton
from sync_bn._activation import Activation
from sync_bn._arithmetic import LocalGradients, Moments, Scaling, global_moments, per_channel


class Tensors(NamedTuple):
    """The tensor arguments of a call; all except x may be None.

    x: (N, C, ...), any floating dtype, N may be 0. weight, bias: (C,). residual: like x, added before the
    activation. w: the weights of the values in the statistics, (N, 1, ...), broadcastable over x.
    """

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None = None
    w: Tensor | None = None


class Call(NamedTuple):
    """The other arguments of a call.

    synchronized: whether statistics are over the ranks of `group`; if not, this rank's alone.
    handshake: called with "forward" or "backward" before each collective; None: no handshake.
    observed: whether to return this rank's own sums.
    label: of the layer, the same on all ranks, if these may add in shared memory; otherwise "".
    """

    eps: float
    activation: Activation | None
    synchronized: bool
    group: dist.ProcessGroup | None
    handshake: Callable[[str], None] | None
    observed: bool
    label: str = ""


class Normalised(NamedTuple):
    """The output z, the moments of the global batch and, if observed, this rank's own sums.

    Only z is differentiable.
    """

    z: Tensor
    moments: Moments
    local_sums: Tensor | None


def batch_norm_over_ranks(tensors: Tensors, call: Call) -> Normalised:
    """Returns activation(batch_norm(x) + residual), normalised over the samples of all ranks of the group.

    Collective: every rank of the group must call it, and backward of its result; both block until all ranks
    have. Gradients of weight and bias are this rank's sums, which DDP averages like any others. Either all
    ranks or none must request second derivatives.
    """
    z, mean, var, n, local = _Forward.apply(*tensors, call)  # type: ignore[no-untyped-call]
    return Normalised(z, Moments(mean, var, n), local)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        w: Tensor | None,
        call: Call,
    ) -> tuple[Tensor | None, ...]:
        passes = passes_for(Tensors(x, weight, bias, residual, w), call)
        ctx.set_materialize_grads(False)
        sums = passes.local_sums(x, w)
        local = sums.clone() if call.observed else None
        # Normalising needs the moments of the global batch. Every rank reaches this, an empty one with zeros,
        # and always with 2C+1 float64 numbers, whatever the dtype of its input.
        total = _all_reduce(sums, call, "forward")
        z, moments, coefficients = passes.normalise(
            x, total, call.eps, weight, bias, residual, call.activation
        )
        if residual is not None and call.activation is None:
            # No derivative depends on its values: an expanded zero takes its place, to free the residual.
            residual = residual.new_zeros(()).expand_as(residual)
        # Saved-tensor hooks may change a tensor's precision or memory format. The per-channel numbers are not
        # exposed to them: the count may exceed half precision, and the loops' numbers are packed bits.
        channel_numbers = (moments.n, *coefficients) if torch.compiler.is_compiling() else ()
        ctx.save_for_backward(x, weight, bias, residual, w, *channel_numbers)
        ctx.channel_numbers = () if channel_numbers else (moments.n, coefficients)
        ctx.call, ctx.passes = call, passes
        ctx.mark_non_differentiable(*moments, *([] if local is None else [local]))
        return z, *moments, local

    @staticmethod
    def backward(ctx: Any, dz: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        if ctx.channel_numbers:
            tensors, (n, coefficients) = ctx.saved_tensors, ctx.channel_numbers
        else:
            *tensors, n = ctx.saved_tensors[:6]
            coefficients = Scaling(*ctx.saved_tensors[6:])
        dz = torch.zeros_like(tensors[0]) if dz is None else dz
        # Grad mode is on if the gradients themselves will be differentiated.
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return *_gradients(dz, tensors, n, coefficients, ctx.passes, ctx.call, needed), None, None
        gradients = _Backward.apply(  # type: ignore[no-untyped-call]
            dz, *tensors, n, coefficients, ctx.passes, ctx.call, needed
        )
        return *gradients, None, None


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dz: Tensor, *args: Any) -> tuple[Tensor | None, ...]:
        *tensors, n, coefficients, passes, call, needed = args
        ctx.save_for_backward(dz, *tensors)
        ctx.call = call
        return _gradients(dz, tensors, n, coefficients, passes, call, needed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        dz, *tensors = ctx.saved_tensors
        second = _second_derivatives(dz, Tensors(*tensors), ctx.call, gradients)
        return *second, *[None] * (len(ctx.needs_input_grad) - len(second))


def _gradients(
    dz: Tensor,
    tensors: Sequence[Any],
    n: Tensor,
    coefficients: Any,
    passes: Any,
    call: Call,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of x, weight, bias and the residual; None for those not needed."""
    x, weight, bias, residual, w = tensors
    passes, coefficients = passes_for_gradient(passes, coefficients, dz, x, weight, residual, call)
    local: LocalGradients = passes.local_gradient_sums(dz, x, coefficients, residual, call.activation)
    dx_needed, weight_needed, bias_needed, residual_needed, *_ = needed
    grad_bias, grad_weight = local.sums.chunk(2)
    gradients = (
        grad_weight.to(weight.dtype, copy=True) if weight is not None and weight_needed else None,
        grad_bias.to(bias.dtype, copy=True) if bias is not None and bias_needed else None,
        local.dy.to(residual.dtype) if residual is not None and residual_needed else None,
    )
    # Each sample contributes to the global mean and variance, so its gradient needs the dy of all ranks.
    # Every rank reaches this: an empty one with zeros, and one whose input needs no gradient, as its peers'
    # may.
    total = _all_reduce(local.sums, call, "backward")
    dx = passes.input_gradient(local, x, coefficients, n, weight, total, w) if dx_needed else None
    return dx, *gradients


def _all_reduce(sums: Tensor, call: Call, phase: str) -> Tensor:
    """Adds `sums` over all ranks in place and returns it.

    Steps with a handshake use the process group, so that it and torch's own checks see them; after that the
    ranks add in shared memory, if they have agreed on it. All decide alike: they have the same steps with a
    handshake.
    """
    if not call.synchronized:
        return sums
    if call.handshake is not None:
        call.handshake(phase)
        _sums.prepare(call.group, sums.device)
    elif call.label and _sums.add(sums, call.group, f"{phase} of {call.label}"):
        return sums
    dist.all_reduce(sums, group=call.group)
    return sums


def passes_for(tensors: Tensors, call: Call) -> Any:
    """Returns the four passes: loops or kernels that support all tensors, or torch's operations."""
    x, weight, bias, residual, w = tensors
    if torch.compiler.is_compiling():
        return _arithmetic
    loops = None if w is not None else _native.passes(x, call.activation, weight, bias, residual)
    return loops or _triton.passes(x, weight, bias, residual) or _arithmetic


def passes_for_gradient(
    passes: Any,
    coefficients: Any,
    dz: Tensor,
    x: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    call: Call,
) -> tuple[Any, Any]:
    """Returns the implementation for the backward pass and its coefficients, given those of the forward."""
    loop_residual = residual if call.activation is not None else None
    if passes is _arithmetic or passes.handles(dz, x, weight, loop_residual):
        return passes, coefficients
    return _arithmetic, coefficients.scaling()


def _second_derivatives(
    dz: Tensor, tensors: Tensors, call: Call, gradients: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of dz, x, weight, bias and residual, from those of the four first gradients.

    Builds the same graph with the same collectives on every rank, whichever gradients the rank itself needs:
    missing ones count as zero.
    """
    with torch.enable_grad():
        x, weight, bias, residual, w = (t if t is None else t.detach() for t in tensors)
        assert x is not None
        inputs = [t.requires_grad_() for t in (x, weight, bias, residual) if t is not None]
        dz = dz.detach().requires_grad_()
        z = _definition(Tensors(x, weight, bias, residual, w), call)
        first = torch.autograd.grad(z, inputs, dz, create_graph=True)
        of_first = [g for g, t in zip(gradients, (x, weight, bias, residual), strict=True) if t is not None]
        of_first = [torch.zeros_like(f) if g is None else g for f, g in zip(first, of_first, strict=True)]
        second = torch.autograd.grad(first, [dz, *inputs], of_first, allow_unused=True)
    others = iter(second[1:])
    return second[0], *(None if t is None else next(others) for t in (x, weight, bias, residual))


def _definition(tensors: Tensors, call: Call) -> Tensor:
    """Computes z in float64, in differentiable operations."""
    x, weight, bias, residual, w = tensors
    wide = x.double()
    w = torch.ones_like(wide[:, :1]) if w is None else w.double()
    dims = [dim for dim in range(x.dim()) if dim != 1]
    n = w.expand_as(wide[:, :1]).sum().reshape(1)
    sums = torch.cat([(w * wide).sum(dims), (w * wide * wide).sum(dims), n])
    if call.synchronized:
        sums = cast(Tensor, _SumOverRanks.apply(sums, call.group))  # type: ignore[no-untyped-call]
    mean, var, _ = global_moments(sums)
    y = (wide - per_channel(mean, x)) * per_channel((var + call.eps).rsqrt(), x)
    y = y if weight is None else y * per_channel(weight, x)
    y = y if bias is None else y + per_channel(bias, x)
    y = y if residual is None else y + residual
    return (y if call.activation is None else call.activation(y)).to(x.dtype)


class _SumOverRanks(torch.autograd.Function):
    """Adds a tensor over ranks, and its gradient too: the loss of every rank depends on the sum."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = local.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _SumOverRanks.apply(gradient, ctx.group), None  # type: ignore[no-untyped-call]
