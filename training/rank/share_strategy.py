"""The Lightning strategy of a rank in the usual mode: steps of its share of each batch, gradients by DDP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from training.callbacks.global_loss import GlobalLoss
from training.internals import SKIPPED
from training.model.sample_noise import SampleNoise
from training.rank.strategy import GroupStrategy


class ShareStrategy(GroupStrategy):
    """Runs each step on this rank's share of the batch. noise: what training steps draw with."""

    def __init__(
        self, *, loss: GlobalLoss, share: Callable[[object], object], noise: SampleNoise, **ddp: Any
    ) -> None:
        super().__init__(loss=loss, share=share, **ddp)
        self._noise = noise

    def configure_ddp(self) -> None:
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)
        self._loss.gradients.attach(self.model)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        module = self.lightning_module
        assert module is not None
        self._loss.begin_step()
        noise = self._noise.step(module, self._loss.share.share)
        with self._loss.gradients.forward_only(), self._in_step(), noise:
            output = super().training_step(*args, **kwargs)
        if not module.automatic_optimization:
            self._loss.end_manual_step()
        elif output is None:
            self._loss.skip()
            return SKIPPED
        return output

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._in_step():
            return super().validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._in_step():
            return super().test_step(*args, **kwargs)

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        with self._loss.share.explained(), self._loss.targets.in_step(self.root_device):
            yield

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        module, precision = self.lightning_module, self.precision_plugin
        assert module is not None
        loss: Tensor = precision.pre_backward(closure_loss, module)
        if loss.requires_grad or not self._loss.others_go_on:
            with self._noise.backward():
                precision.backward(loss, module, optimizer, *args, **kwargs)
        self._loss.gradients.finish()
        return precision.post_backward(loss, module)
