"""The Lightning environment and strategy of a rank, for the process group that exists already."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn

from training.callbacks.global_loss import GlobalLoss
from training.errors import BuildError
from training.internals import allow_skipped_steps
from training.loading.generators import generator_states, set_generator_states
from training.model.supervised import Supervised
from training.protocol import RankAssignment


class GroupEnvironment(LightningEnvironment):
    """A ClusterEnvironment that reports the existing process group to Lightning."""

    def __init__(self, assignment: RankAssignment) -> None:
        super().__init__()
        self._assignment = assignment

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def world_size(self) -> int:
        return dist.get_world_size()

    def set_world_size(self, size: int) -> None: ...

    def global_rank(self) -> int:
        return dist.get_rank()

    def set_global_rank(self, rank: int) -> None: ...

    def local_rank(self) -> int:
        return self._assignment.local_rank

    def node_rank(self) -> int:
        return self._assignment.node_rank

    def teardown(self) -> None: ...

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """A context in which another position on the hosts is reported."""
        own = self._assignment
        self._assignment = replace(own, local_rank=own.local_rank + 1, node_rank=own.node_rank + 1)
        try:
            yield
        finally:
            self._assignment = own


class GroupStrategy(DDPStrategy):
    """DDP in the existing process group. A rank sees only its own GPUs and uses the first.

    loss: weights the losses of the ranks, and knows when gradients are averaged. share: returns the loader
    that this rank uses in place of each of the user's. Other arguments are those of torch's
    DistributedDataParallel.
    """

    def __init__(self, *, loss: GlobalLoss, share: Callable[[object], object], **ddp: Any) -> None:
        super().__init__(**ddp)
        self._loss, self._share = loss, share

    @property
    def root_device(self) -> torch.device:
        assert self.parallel_devices is not None
        return self.parallel_devices[0]

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": dist.get_world_size(), "rank": dist.get_rank()}

    def setup_environment(self) -> None:
        """Keeps the random numbers, which DDP seeds anew: `setup` draws what it draws on one device.

        Those of rank 0 count, so that all ranks draw the same. A test begins with the seed, whatever the
        training drew.
        """
        kept = generator_states()
        super().setup_environment()
        if self.lightning_module is None or self.lightning_module.trainer.state.fn == TrainerFn.FITTING:
            states = [kept]
            dist.broadcast_object_list(states)
            set_generator_states(states[0])

    def process_dataloader(self, dataloader: object) -> object:
        return self._share(dataloader)

    def setup(self, trainer: Trainer) -> None:
        allow_skipped_steps(trainer)
        super().setup(trainer)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        own = module.model if isinstance(module, Supervised) else module
        remedy = "go on with the model that saved it"
        with _fitting("weights do", f"the {type(own).__name__} of this run", remedy):
            super().load_model_state_dict(checkpoint, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        remedy = "keep the optimizers, or start with the weights alone (start_from.state: weights)"
        with _fitting("optimizer state does", "the optimizers of this run", remedy):
            super().load_optimizer_state_dict(checkpoint)

    def optimizer_step(
        self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        needs_loss = isinstance(optimizer, torch.optim.LBFGS)
        whole = self._loss.in_closure(closure, needs_loss=needs_loss)
        return super().optimizer_step(optimizer, whole, model, **kwargs)


_OF_SUPERVISED = re.compile(r"(\"|for )model\.")
"""Where names of a user's nn.Module begin in torch's messages."""


@contextmanager
def _fitting(part: str, own: str, remedy: str) -> Iterator[None]:
    """Explains an error of loading a checkpoint's state. part: with its verb."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        first, *lines = (line.strip() for line in str(error).splitlines())
        names = _OF_SUPERVISED.sub(r"\1", "; ".join(lines) or first)
        why = textwrap.shorten(names, 500, placeholder=" …")
        raise BuildError(
            "start_from",
            f"the checkpoint's {part} not fit {own}: {why}; {remedy}",
        ) from error
