"""Gradients averaged over the ranks, whichever parameters a backward pass reaches on each of them.

DistributedDataParallel sends a gradient as soon as it is known, while the backward pass goes on. It waits for
every parameter, so it fails where a pass does not reach one: a head that is not used for this batch, an
optimizer that owns a part of the parameters, a layer that was frozen or unfrozen. Which parameters a pass
reaches is known when it begins; the ranks tell each other together with the loss (`callbacks.global_loss`).
If all ranks reach all parameters, DistributedDataParallel averages as usual. Otherwise the gradients are
averaged after the pass, and a parameter that no rank has reached keeps its gradient, or None.

Ranks of one host that compute on its CPUs average after each pass, in memory that they share: sending would
take time from the same processors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn.parallel import DistributedDataParallel

from sync_bn import _sums
from sync_bn._large_sums import LargeSums
from training import internals

CHUNK_BYTES = 25 * 2**20  # as the buckets of DistributedDataParallel
_DENSE = 100
"""The kind of a dense gradient. The kind of a sparse one is its number of sparse dimensions; 0: no gradient.

The greatest kind of any rank counts for all: a sparse gradient can be made dense.
"""


class GradientSync:
    """Averages the gradients of one model over all ranks, once per backward pass.

    Order of calls: `attach` once; for each pass `reaches_all` and `start` when it begins, `finish` when it
    has ended. Without `start`, as in the first micro-batches of a step, `finish` does nothing.
    """

    def __init__(self) -> None:
        self._ddp: DistributedDataParallel | None = None
        self._parameters: list[nn.Parameter] = []
        self._trainable: list[bool] = []
        self._nodes: list[Node] = []
        self._due = self._all_are_dense = self._may_be_sparse = False
        self._in_memory: LargeSums | None = None
        self._before: list[tuple[Tensor | None, int]] | None = None

    def attach(self, ddp: DistributedDataParallel) -> None:
        """Takes the wrapped model. All ranks must have the same parameters in the same order. Collective."""
        self._ddp = ddp
        _sums.prepare(None, ddp.device)
        self._in_memory = LargeSums.agreed(None)
        self._parameters = list(ddp.module.parameters())
        self._may_be_sparse = any(getattr(part, "sparse", False) for part in ddp.module.modules())
        self._trainable = [parameter.requires_grad for parameter in self._parameters]
        self._nodes = [
            get_gradient_edge(parameter).node for parameter in self._parameters if parameter.requires_grad
        ]

    def forward_only(self) -> AbstractContextManager[None]:
        """Returns a context for the forward pass, in which the wrapper does not prepare for the backward."""
        assert self._ddp is not None
        return self._ddp.no_sync()

    def reaches_all(self) -> bool:
        """Returns whether the pass will reach every parameter. Call it in a hook of the loss."""
        unchanged = [parameter.requires_grad for parameter in self._parameters] == self._trainable
        return unchanged and all(map(internals.backward_reaches, self._nodes))

    def start(self, *, reaches_all: bool, accumulated: bool) -> None:
        """Begins a pass after which the gradients are averages.

        reaches_all: whether it reaches every parameter on all ranks. accumulated: whether earlier passes have
        left gradients that are not averaged yet. If not, only gradients that this pass changes on some rank
        are averaged.
        """
        assert self._ddp is not None
        internals.prepare_forward_sync(self._ddp)
        if reaches_all and self._in_memory is None:
            internals.prepare_for_backward(self._ddp)
            return
        self._due, self._all_are_dense = True, reaches_all and not self._may_be_sparse
        if not (accumulated or self._all_are_dense):
            self._before = [_state(parameter) for parameter in self._parameters]

    def finish(self) -> None:
        """Averages the gradients that DistributedDataParallel did not. Collective."""
        if not self._due:
            return
        self._due = False
        dense = [parameter for parameter in self._parameters if parameter.requires_grad]
        if not self._all_are_dense:
            kinds = torch.tensor(self._kinds(), dtype=torch.int32, device=self._parameters[0].device)
            dist.all_reduce(kinds, dist.ReduceOp.MAX)
            by_kind = list(zip(self._parameters, kinds.tolist(), strict=True))
            for parameter, kind in by_kind:
                if 0 < kind < _DENSE:
                    _average_sparse(parameter, kind)
            dense = [parameter for parameter, kind in by_kind if kind == _DENSE]
        if self._in_memory is None:
            for chunk in _chunks(dense, CHUNK_BYTES):
                _average(chunk)
        else:
            for of_one_kind in _chunks(dense, math.inf):
                _average_in_memory(of_one_kind, self._in_memory)

    def _kinds(self) -> list[int]:
        if self._before is None:
            return [_kind(parameter) for parameter in self._parameters]
        before, self._before = self._before, None
        return [
            _kind(parameter) if _changed(_state(parameter), earlier) else 0
            for parameter, earlier in zip(self._parameters, before, strict=True)
        ]


def _state(parameter: nn.Parameter) -> tuple[Tensor | None, int]:
    gradient = parameter.grad
    return gradient, 0 if gradient is None else internals.changes_in_place(gradient)


def _changed(now: tuple[Tensor | None, int], before: tuple[Tensor | None, int]) -> bool:
    return now[0] is not before[0] or now[1] != before[1]


def _kind(parameter: nn.Parameter) -> int:
    if parameter.grad is None:
        return 0
    return parameter.grad.sparse_dim() if parameter.grad.is_sparse else _DENSE


def _chunks(parameters: Sequence[nn.Parameter], most: float) -> Iterator[list[nn.Parameter]]:
    """Yields groups of one dtype and device, of up to `most` bytes unless a parameter alone has more."""
    kinds = dict.fromkeys((parameter.dtype, parameter.device) for parameter in parameters)
    for kind in kinds:
        chunk: list[nn.Parameter] = []
        size = 0
        for parameter in parameters:
            if (parameter.dtype, parameter.device) != kind:
                continue
            if chunk and size + parameter.nbytes > most:
                yield chunk
                chunk, size = [], 0
            chunk.append(parameter)
            size += parameter.nbytes
        yield chunk


def _average(parameters: Sequence[nn.Parameter]) -> None:
    """Replaces the gradients by their averages, which are dense; a missing one counts as zero. Collective."""
    gradients = [_dense(parameter) for parameter in parameters]
    flat = torch.cat([gradient.detach().reshape(-1) for gradient in gradients])
    flat /= dist.get_world_size()
    dist.all_reduce(flat)
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for parameter, gradient, part in zip(parameters, gradients, parts, strict=True):
        gradient.detach().copy_(part.view_as(gradient))
        parameter.grad = gradient


def _average_in_memory(parameters: Sequence[nn.Parameter], memory: LargeSums) -> None:
    """Does what `_average` does, to the same bits on two ranks."""
    gradients = [_dense(parameter) for parameter in parameters]
    flat = [gradient.detach().reshape(-1) for gradient in gradients]
    memory.average(flat, "gradients")
    for parameter, gradient, averages in zip(parameters, gradients, flat, strict=True):
        if not gradient.is_contiguous():  # otherwise `averages` is a view of it
            gradient.detach().copy_(averages.view_as(gradient))
        parameter.grad = gradient


def _dense(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros_like(parameter)
    return gradient.to_dense() if gradient.is_sparse else gradient


def _average_sparse(parameter: nn.Parameter, sparse_dims: int) -> None:
    gradient = parameter.grad
    if gradient is None:  # gloo needs the same dimensions on all ranks
        indices = torch.empty((sparse_dims, 0), dtype=torch.int64, device=parameter.device)
        values = parameter.new_empty((0, *parameter.shape[sparse_dims:]))
        gradient = torch.sparse_coo_tensor(indices, values, parameter.shape, check_invariants=False)
    gradient = gradient / dist.get_world_size()
    dist.all_reduce(gradient)
    parameter.grad = gradient
