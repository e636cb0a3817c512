"""Ghost batch normalisation: BatchNorm over virtual batches (Hoffer et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


class GhostBatchNorm(_BatchNorm):
    """BatchNorm over each virtual batch: `samples` consecutive samples of this worker's input.

    The last virtual batch has the rest; a rest of one sample joins the one before, because one value per
    channel has no variance. The running statistics are updated by one virtual batch after the other (Hoffer,
    Hubara & Soudry, "Train longer, generalize better", 2017, Algorithm 1), and not by an empty input. In
    evaluation it is BatchNorm.

    Made from a BatchNorm layer in place, so that its parameters, buffers and hooks stay, and back.
    """

    samples: int
    original_class: type[_BatchNorm]

    @staticmethod
    def make(layer: _BatchNorm, samples: int) -> None:
        """Makes `layer`, of a class that computes what nn.BatchNorm does, a GhostBatchNorm."""
        layer.__dict__.update(samples=samples, original_class=type(layer))
        layer.__class__ = GhostBatchNorm

    def revert(self) -> None:
        """Gives the layer its original class back."""
        original_class = self.__dict__.pop("original_class")
        del self.__dict__["samples"]
        self.__class__ = original_class

    def forward(self, input: Tensor) -> Tensor:
        """Returns the normalised input, with its shape. Raises ValueError unless it is (N, C, ...)."""
        if not self.training:
            return super().forward(input)
        if not input.numel():
            return self._of_nothing(input)
        parts = list(torch.split(input, self.samples))
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts[-2:] = [torch.cat(parts[-2:])]
        normalised = []
        for part in parts:
            normalised.append(super().forward(part))
        return torch.cat(normalised)

    def _of_nothing(self, input: Tensor) -> Tensor:
        """Computes an empty output that depends on the parameters, as those of other workers do."""
        zeros, ones = input.new_zeros(self.num_features), input.new_ones(self.num_features)
        return torch.nn.functional.batch_norm(input, zeros, ones, self.weight, self.bias)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input (N, C, ...), got one of shape {tuple(input.shape)}")

    def extra_repr(self) -> str:
        """Returns the arguments of BatchNorm and the size of a virtual batch."""
        arguments: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{arguments}, samples={self.samples}"
