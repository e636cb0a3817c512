"""cross_entropy and nll_loss over the targets of the global batch, and `sync_bn.global_mean` within a step.

With class weights or ignored targets torch divides by the sum of the weights of the targets that count, which
differs between shares. Within a step these losses are `global_mean`s of that sum.

A call without class weights that leaves `ignore_index` to torch would need a collective only if a target is
-100 or if shares have different numbers of targets per sample, and most have neither. So it is computed from
the share alone. Its counts travel with what the ranks tell one another in any case, and it is refused if they
show that its value was not a mean over samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from sync_bn.losses import global_mean, summed_by
from training import internals
from training.callbacks.meeting import meet
from training.callbacks.share_counts import ShareCounts
from training.errors import StepError

_WAY_OUT = (
    "pass ignore_index by name, as in CrossEntropyLoss(ignore_index=-100): then the mean is over the targets "
    "of all workers"
)
_ROUNDING = 1e-13
"""Relative, of the variance of targets per sample: far below that of one target among a million."""


class TargetMeans:
    """Makes losses within a step those of the global batch, and counts the targets of the others.

    ignored, targets: of the calls since `forget`, whose value is of this rank's share alone.
    """

    def __init__(self, share: ShareCounts, meet: Callable[[str, Tensor], Tensor] = meet) -> None:
        self._share, self._meet = share, meet
        self._calls = self._plain_calls = 0
        self._device = torch.device("cpu")
        self.forget()

    def begin_step(self, device: torch.device) -> None:
        """Counts the calls of a step anew. device: for collectives."""
        self._calls = self._plain_calls = 0
        self._device = device

    def forget(self) -> None:
        """Starts to count anew."""
        self.ignored: Tensor | float = 0.0
        self.targets = 0.0

    @contextmanager
    def in_step(self, device: torch.device) -> Iterator[None]:
        """A context for a training, validation or test step. device: for collectives."""
        if dist.get_world_size() == 1:
            yield
            return
        with counted_by([self], lambda: self, device):
            yield

    def _cross_entropy(
        self,
        loss: Callable[..., Tensor],
        scores: Tensor,
        target: Tensor,
        weight: Tensor | None,
        reduction: int,
        ignore_index: int,
        label_smoothing: float,
    ) -> Tensor:
        def reduced(how: int) -> Tensor:
            return loss(scores, target, weight, how, ignore_index, label_smoothing)

        if scores.shape != target.shape:
            return self._of_indices(reduced, target, weight, reduction, ignore_index)
        # Probabilities: torch divides by the number of positions, whatever the weights.
        result = reduced(reduction)
        if reduction == internals.MEAN and not internals.is_traced(target):
            self._count(result, target.numel() // target.shape[min(1, target.dim() - 1)])
        return result

    def _nll_loss(
        self,
        loss: Callable[..., Tensor],
        scores: Tensor,
        target: Tensor,
        weight: Tensor | None,
        reduction: int,
        ignore_index: int,
    ) -> Tensor:
        def reduced(how: int) -> Tensor:
            return loss(scores, target, weight, how, ignore_index)

        return self._of_indices(reduced, target, weight, reduction, ignore_index)

    def _of_indices(
        self,
        reduced: Callable[[int], Tensor],
        target: Tensor,
        weight: Tensor | None,
        reduction: int,
        ignore_index: int,
    ) -> Tensor:
        result = reduced(reduction)  # which raises torch's errors
        if reduction != internals.MEAN:
            return result
        counts = target != ignore_index
        if weight is None and internals.is_default_ignore_index(ignore_index):
            if internals.is_traced(target):
                return result  # not counted
            if self._share.samples:
                self.ignored = self.ignored + (~counts).sum().double()
            self._count(result, target.numel())
            return result
        if internals.is_traced(target):
            raise StepError(
                "torch.compile compiles a loss with weight or ignore_index, which communicates: compute the "
                "loss in the step, outside of what is compiled"
            )
        weights = counts.double() if weight is None else _weights(target, weight, counts)
        divisor = weights.sum()
        # Where torch divides by 0, the sum is what it divides: 0, or a term of label smoothing.
        total = result.double() * divisor if divisor else reduced(internals.SUM).double()
        return global_mean(total, divisor).to(result.dtype)

    def _count(self, result: Tensor, targets: int) -> None:
        self._plain_calls += 1
        if result.requires_grad:  # a value that is only logged may be of a part of the samples
            # Irrational factors, because calls on two parts of the samples have as many targets as samples.
            self.targets += math.sqrt(self._plain_calls) * targets

    def _sum(self, numbers: Tensor) -> tuple[Tensor, float]:
        """Sums over the ranks; one without samples, which may have a placeholder's, adds zeros."""
        self._calls += 1
        samples = self._share.samples
        own = torch.zeros_like(numbers) if not samples else numbers
        place = f"mean over all workers number {self._calls} in {self._share.batch}"
        sums = self._meet(place, torch.cat([own, own.new_tensor([samples])]).to(self._device))
        return sums[:-1].to(numbers.device), samples / float(sums[-1])


@contextmanager
def counted_by(
    all_of_them: Sequence[TargetMeans], running: Callable[[], TargetMeans], device: torch.device
) -> Iterator[None]:
    """A context for a step in which `running` gives the one that a call of a loss is for.

    device: for collectives.
    """
    for each in all_of_them:
        each.begin_step(device)
    losses: dict[str, Callable[..., Tensor]] = {
        "cross_entropy_loss": lambda *args: running()._cross_entropy(*args),
        "nll_loss_nd": lambda *args: running()._nll_loss(*args),
    }
    with internals.losses_replaced(losses), summed_by(lambda numbers: running()._sum(numbers)):
        yield


def _weights(target: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    return weight.detach().double()[target.where(counts, 0)].where(counts, 0.0)


def refuse_plain_means(
    *, ignored: float, targets: float = 0.0, spread: float = 0.0, samples: float = 0.0
) -> None:
    """Raises StepError, on every rank alike, if a loss that was computed from shares is not of all samples.

    ignored, targets: summed over all ranks. spread: the sum of the ranks' targets² / samples, which is
    targets² / samples of all if and only if every rank has as many targets per sample, and greater otherwise.
    """
    if ignored:
        raise StepError(
            f"{ignored:.0f} targets of cross_entropy or nll_loss are -100, which torch ignores by default, "
            f"so its mean over a worker's share does not count every target alike; {_WAY_OUT}"
        )
    if samples and spread * samples > targets**2 * (1 + _ROUNDING):
        raise StepError(
            "cross_entropy or nll_loss has more targets for each sample on some workers than on others (a "
            "part of the samples, sequences or graphs of different sizes), so its mean over a worker's share "
            f"does not count every target alike; {_WAY_OUT}"
        )
