"""What each rank does with a spec: build, fit, test, export. Ray Train calls `train` on every worker."""

from __future__ import annotations

import json
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray.train

from training.failures import BuildError, RankFailed
from training.spec import Spec, flat, parse_spec

FIRST_BATCH_SECONDS = 300.0
"""How long workers wait for one another in the first steps: the first batch of one may come late."""


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where an attempt's results go. `output`: a folder; `mlflow_uri` and `run_id`: a run that exists."""

    output: str | None = None
    mlflow_uri: str | None = None
    run_id: str | None = None


def train(config: dict[str, Any]) -> None:
    """The training function. config: {"spec": JSON text, "destination": Destination}.

    Raises RankFailed, whatever went wrong, so that the driver can unpickle it without the user's code.
    """
    rank = ray.train.get_context().get_world_rank()
    try:
        _quiet()
        Attempt(parse_spec(json.loads(config["spec"])), config["destination"]).run()
    except Exception as error:
        raise RankFailed.of(error, rank=rank, when=time.time()) from None


class Attempt:
    """One rank's part of one attempt."""

    def __init__(self, spec: Spec, destination: Destination) -> None:
        self.spec, self.destination = spec, destination
        self.context = ray.train.get_context()
        self.rank: int = self.context.get_world_rank()
        self.world_size: int = self.context.get_world_size()

    def run(self) -> None:
        from lightning.pytorch import seed_everything

        from training.module import Supervised, as_lightning_module
        from training.norm_report import norm_report
        from training.norms import apply_norm

        seed_everything(self.spec.training.seed, verbose=False)
        data = self._data()
        model = _built_model(self.spec)
        module = as_lightning_module(apply_norm(model, self.spec.norm), self.spec)
        if isinstance(module, Supervised):
            self.spec = module.spec  # with the optimizer that it has by default
        with self._tracker() as tracker:
            report = norm_report(self.spec.norm, self.rank, tracker)
            trainer = self._trainer(tracker, report)
            self._say(f"{type(model).__name__} on {self.world_size} workers: training")
            module.log = partial(module.log, sync_dist=True)  # type: ignore[method-assign]
            train_loader = self._loaders(data, "train")[0]
            trainer.fit(
                module,
                train_dataloaders=train_loader,
                val_dataloaders=self._loaders(data, "val") or None,
                ckpt_path=self._resume_from(),
                weights_only=False,
            )
            if tests := self._loaders(data, "test"):
                trainer.test(module, dataloaders=tests, verbose=False)
            del module.log
            self._deliver(module, train_loader, tracker, report)

    def _data(self) -> Any:
        from lightning.pytorch import LightningDataModule

        from training.build import construct

        data = construct(self.spec.data, "data")
        if not isinstance(data, LightningDataModule):
            raise BuildError(
                "data.class_path",
                f"{self.spec.data.class_path} gives a {type(data).__name__}, which is no LightningDataModule",
            )
        if self.context.get_local_rank() == 0:
            data.prepare_data()
        import torch.distributed as dist

        dist.barrier()  # every rank gets here: nobody sets up before the node's first has the files
        data.setup("fit")
        data.setup("test")
        return data

    def _loaders(self, data: Any, stage: str) -> list[Any]:
        from lightning.pytorch.utilities.model_helpers import is_overridden

        from training.batches import loaders_of, share_loader

        if not is_overridden(f"{stage}_dataloader", data):
            if stage == "train":
                raise BuildError("data.class_path", f"{type(data).__name__} has no train_dataloader")
            return []
        settings = self.spec.training
        return [
            share_loader(
                loader,
                batch_size=settings.global_batch_size,
                rank=self.rank,
                world_size=self.world_size,
                seed=settings.seed,
                drop_last=settings.drop_last and stage == "train",
            )
            for loader in loaders_of(getattr(data, f"{stage}_dataloader")(), f"data.{stage}_dataloader")
        ]

    def _trainer(self, tracker: Any, norm_report: Any) -> Any:
        import lightning.pytorch as pl
        from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, prepare_trainer

        from sync_bn import check_ranks
        from sync_bn.lightning import SyncBatchNormPlugin
        from training.checkpoint import EpochCheckpoint
        from training.global_loss import GlobalLoss
        from training.norms import process_group
        from training.reporting import LightningLogger, Report

        settings, synchronized = self.spec.training, self.spec.norm.kind == "sync_batch_norm"
        plugins: list[Any] = [RayLightningEnvironment()]
        if synchronized:
            group = process_group(self.spec.norm, self.context.get_node_rank())
            plugins.append(SyncBatchNormPlugin(process_group=group))
            check_ranks(timeout_seconds=FIRST_BATCH_SECONDS)
        # Synchronized over the world, buffers are equal on all ranks already; sending them costs time.
        same_buffers = synchronized and self.spec.norm.group == "world"
        trainer = pl.Trainer(
            accelerator="gpu" if self.spec.resources.gpus_per_worker else "cpu",
            devices="auto",
            strategy=RayDDPStrategy(forward_sync_buffers=not same_buffers),
            plugins=plugins,
            precision=settings.precision,
            max_epochs=settings.max_epochs or -1,
            max_steps=settings.max_steps or -1,
            callbacks=[norm_report, GlobalLoss(tracker), Report(tracker), EpochCheckpoint()],
            logger=LightningLogger(tracker),
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        return prepare_trainer(trainer)

    def _resume_from(self) -> str | None:
        from training.checkpoint import FILE

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        self._say("resuming from the last checkpoint")
        return str(Path(checkpoint.to_directory()) / FILE)

    @contextmanager
    def _tracker(self) -> Iterator[Any]:
        """Rank 0 writes; the others have a null object."""
        from training.tracking import Fanout, JsonLines, NullTracker

        if self.rank != 0:
            yield NullTracker()
            return
        with ExitStack() as stack:
            trackers: list[Any] = []
            if self.destination.output:
                trackers.append(JsonLines(Path(self.destination.output) / "metrics.jsonl"))
            if self.destination.mlflow_uri and self.destination.run_id:
                trackers.append(self._mlflow(stack))
            tracker = Fanout(trackers)
            try:
                yield tracker
            except BaseException:
                # What happened is what the user must read, not that its last metrics did not get through.
                with suppress(Exception):
                    tracker.close()
                raise
            tracker.close()

    def _mlflow(self, stack: ExitStack) -> Any:
        from training.mlflow_tracking import MlflowTracker, SystemMetrics

        uri, run_id = self.destination.mlflow_uri, self.destination.run_id
        assert uri is not None
        assert run_id is not None
        stack.enter_context(SystemMetrics(uri, run_id))
        return MlflowTracker(
            uri,
            run_id,
            params=flat(self.spec),
            tags={"syncbn.world_size": str(self.world_size), "syncbn.norm": self.spec.norm.kind},
            register_as=self.spec.tracking.register_as,
        )

    def _deliver(self, module: Any, loader: Any, tracker: Any, norm_report: Any) -> None:
        """The model and the figures; rank 0 only."""
        if self.rank != 0:
            return
        from training.export import CURVES, draw_curves, example_input, exportable, save

        self._say("saving the model")
        model = exportable(module)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(self.destination.output or temporary)
            save(model, folder / "model.pt")
            draw_curves(tracker.history(CURVES), folder / "curves.png")
            for figure in [folder / "curves.png", *norm_report.draw(folder)]:
                tracker.artifact(figure)
        tracker.model(model, example_input(next(iter(loader))))

    def _say(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)  # noqa: T201 (the log of the job)


def _built_model(spec: Spec) -> Any:
    from training.build import construct
    from training.module import checked_module

    return checked_module(construct(spec.model, "model"), spec)


def _quiet() -> None:
    """Lightning's tips and its warnings about what is meant here would fill a job's log."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
