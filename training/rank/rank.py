"""One rank's training of a spec: joins the group, builds the model, fits, tests, exports."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.console import say
from training.errors import BuildError
from training.hangs.watchdog import Watchdog
from training.linux import keep_freed_memory
from training.protocol import Exit, Order, RankAssignment
from training.rank.children import ending_children
from training.rank.context import RankContext, apply_thread_count, join, own_address
from training.rank.progress import ProgressTracker
from training.rank.pytorch_lightning import alias_pytorch_lightning
from training.rank.reports import Reports
from training.rank.silence import silence_lightning
from training.run_dir import RunFolder
from training.spec import Spec, flat, parse_spec

if TYPE_CHECKING:
    from training.callbacks.checkpointing import Store
    from training.rank.starting_point import StartingPoint
    from training.rank.trainer import RunParts
    from training.tracking.mlflow_run import MlflowRun
    from training.tracking.tracker import Tracker


class RankRun:
    """One rank's part of one start of an attempt."""

    def __init__(self, order: Order, assignment: RankAssignment, reports: Reports) -> None:
        self.order, self.assignment, self.reports = order, assignment, reports
        self.spec = parse_spec(order.spec)
        self.folder = RunFolder(
            path=Path(order.folder),
            output=Path(order.output) if order.output else None,
            checkpoints_url=order.checkpoints,
            attempt=order.number,
            start=order.start,
        )
        self.rank, self.world_size = assignment.rank, order.world_size
        self.trainer: Any = None
        self.watchdog: Watchdog | None = None
        self._final_step: int | None = None
        self._preparing = ExitStack()
        self.builds = False
        """Whether the model and the data are being imported and constructed."""
        self.weights_sha256: str | None = None
        """On rank 0, once the model is saved: see `training.model.weights`."""

    @property
    def step(self) -> int:
        """The current optimizer step, from 1; 0 before the first.

        After `run` has returned: the last step or, if the run was stopped, the step that it resumes from.
        """
        if self._final_step is not None:
            return self._final_step
        return self.watchdog.step if self.watchdog else 0

    def run(self, listener: socket.socket | None) -> Exit:
        """Trains until the end, or until a stop request was answered with a checkpoint. Blocks.

        Every rank must call it. listener: the rendezvous socket on rank 0, else None. Raises any error.
        """
        assert self.order.rendezvous is not None
        apply_thread_count()
        self.context = join(self.assignment, self.world_size, self.order.rendezvous, listener)
        self.reports.joined()
        where = f"{socket.gethostname()} ({own_address(self.order.rendezvous)})"
        say(f"rank {self.rank} of {self.world_size} on {where}")
        return self.train_in(self.context)

    def train_in(self, context: RankContext) -> Exit:
        """Does the work of `run` in a process group that is initialised already."""
        from training.callbacks.checkpointing import StopRequested
        from training.callbacks.job_step import job_step
        from training.tracking.fluent import active_in_mlflow

        self.context = context
        keep_freed_memory()
        alias_pytorch_lightning()
        silence_lightning()
        try:
            self.mlflow_run = self._mlflow_run()
            with (
                active_in_mlflow(self.mlflow_run),
                self._tracker() as tracker,
                self._make_watchdog() as self.watchdog,
                self._store() as store,
                ending_children(),
            ):
                self._run(tracker, self.watchdog, store)
                self._final_step = job_step(self.trainer)
        except StopRequested as stopped:
            self._final_step = stopped.step
            self._print_on_rank_0(f"stopped as asked, saved at step {stopped.step}")
            return Exit.STOPPED
        return Exit.FINISHED

    def _run(self, tracker: Tracker, watchdog: Watchdog, store: Store) -> None:
        from training.callbacks.train_state import is_beside
        from training.internals import keep_logged_steps
        from training.rank.trainer import make_trainer

        module, data, parts = self._parts(tracker, watchdog, store)
        start, loaders = parts.start, parts.loaders
        self.trainer = loaders.trainer = make_trainer(self.spec, self.context, self.folder, parts)
        parts.own_output.go_on(start.state)
        if start.file is not None and is_beside(start.file):
            keep_logged_steps(self.trainer)
        parts.logs.attach(self.trainer)
        self._fit(module, data, start.file)
        if not self.order.curves_only:
            self._finish(module, data, parts)

    def _parts(self, tracker: Tracker, watchdog: Watchdog, store: Store) -> tuple[Any, Any, RunParts]:
        """Returns the module, the data and what the Trainer is made of."""
        from lightning.pytorch import seed_everything

        from training.callbacks.logger import RunLogger
        from training.callbacks.norm_report import norm_report
        from training.callbacks.own_checkpoints import KeptFiles
        from training.callbacks.share_counts import ShareCounts
        from training.model.last_bits import change_last_bits
        from training.model.supervised import Supervised
        from training.rank.loaders import RankLoaders
        from training.rank.options import user_options
        from training.rank.own_output import OwnOutput
        from training.rank.trainer import RunParts, logs_of, shards_of

        seed_everything(self.spec.training.seed, verbose=False)
        files = KeptFiles(self.folder.files, is_lent=self.order.code_folder is None)
        files.remove_links()
        self.builds = True
        # In the order in which LightningCLI constructs them: each may draw random numbers.
        user = user_options(self.spec.trainer, files)
        module = self._module(tracker)
        data = self._data(module)
        self.builds = False
        start = self._start(module, watchdog, store)
        if self.order.last_bit:
            change_last_bits(module)
        share = ShareCounts()
        shards = shards_of(self.spec, self.context, share)
        params = flat(self.spec) if isinstance(module, Supervised) else used_by_any_module(self.spec)
        parts = RunParts(
            tracker=tracker,
            logger=RunLogger(tracker, self.mlflow_run, params, self.folder.files),
            norm_report=norm_report(self.spec.norm, self.rank, tracker),
            watchdog=watchdog,
            store=store,
            start=start,
            share=share,
            logs=logs_of(module, share, shards),
            files=files,
            own_output=OwnOutput(user.loggers, self.folder, self.context),
            loaders=RankLoaders(self.spec, self.context, self._print_on_rank_0, shards),
            shards=shards,
            prepared=self._preparing.close,
            user=user,
            curves_only=self.order.curves_only,
        )
        return module, data, parts

    def _start(self, module: Any, watchdog: Watchdog, store: Store) -> StartingPoint:
        """Reads where the run starts, and gives the module the weights that it starts with."""
        from training.model.initial_weights import start_with
        from training.rank.starting_point import starting_point

        with watchdog.busy("reading the checkpoint"):
            start = starting_point(
                self.spec, store, self.order.start_from, self.context, self._print_on_rank_0
            )
        if start.weights is None:
            return start
        assert self.spec.start_from is not None
        strict = self.spec.start_from.strict
        start_with(module, start.weights, strict=strict, say=self._print_on_rank_0)
        return replace(start, weights=None)

    def _finish(self, module: Any, data: Any, parts: RunParts) -> None:
        """Tests and saves the model that is to be delivered."""
        from training.callbacks.job_step import job_step
        from training.rank.delivery import deliver
        from training.rank.results import save_results

        with parts.watchdog.busy("reading the checkpoint"):
            delivered = deliver(module, self.spec, parts.store, self.context, job_step(self.trainer))
        parts.tracker.tags({"syncbn.model": delivered})
        self._print_on_rank_0(f"the model is that of the {delivered}")
        self._test(module, data)
        parts.logs.detach()
        del module.configure_model
        vars(module).pop("configure_optimizers", None)  # of the spec; the model is saved without it
        if self.rank == 0:
            self._print_on_rank_0("saving the model")
            step = job_step(self.trainer)
            with parts.watchdog.busy("saving the model"):
                self.weights_sha256 = save_results(module, self.spec, parts, step, self.order.output)
            if self.weights_sha256 is not None:
                self._print_on_rank_0(f"sha256 of the weights: {self.weights_sha256}")

    def _module(self, tracker: Tracker) -> Any:
        """Builds the LightningModule; completes the spec with the default optimizer."""
        from training.model.modes import enter_training, in_evaluation
        from training.model.norms import apply_norm, apply_norm_when_made
        from training.model.supervised import Supervised, as_lightning_module
        from training.normalisation.notes import norm_notes

        model = _build_model(self.spec)
        normalised = apply_norm(model, self.spec.norm, self._print_on_rank_0)
        module = as_lightning_module(normalised, self.spec)
        apply_norm_when_made(module, self.spec.norm, self._print_on_rank_0)
        for note in norm_notes(self.spec, self.world_size):
            self._print_on_rank_0(note)
        if isinstance(module, Supervised):
            self.spec = module.spec  # with the default optimizer filled in
            tracker.params(flat(self.spec))
            enter_training(module.model)
        if parts := in_evaluation(model):
            self._print_on_rank_0(f"in evaluation mode while it trains: {parts}")
        if self.spec.training.precision == "64-true":
            module.double()  # Lightning does so too, but after it has loaded a checkpoint into the module
        workers = f"{self.world_size} worker{'s' if self.world_size > 1 else ''}"
        self._print_on_rank_0(f"{type(model).__name__} on {workers}: training")
        return module

    def _fit(self, module: Any, data: Any, checkpoint: Path | None) -> None:
        self._prepares_data()
        self.trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False)

    def _test(self, module: Any, data: Any) -> None:
        from lightning.pytorch.utilities.model_helpers import is_overridden

        if not is_overridden("test_dataloader", module if data is None else data):
            return
        if not is_overridden("test_step", module):
            self._print_on_rank_0(f"no test: {type(module).__name__} has no test_step")
            return
        self._prepares_data()
        self.trainer.test(module, datamodule=data, verbose=False)

    def _prepares_data(self) -> None:
        """Allows a long time until the first batch is about to be requested."""
        assert self.watchdog is not None
        self._preparing.enter_context(self.watchdog.busy("preparing the data"))

    @contextmanager
    def _store(self) -> Iterator[Store]:
        from training.callbacks.checkpointing import checkpoint_store

        store = checkpoint_store(self.spec, self.folder)
        try:
            yield store
        finally:
            store.release()

    def _make_watchdog(self) -> Watchdog:
        hang_seconds = self.spec.training.hang_seconds
        return Watchdog(
            self.folder.hang,
            self.rank,
            self.world_size,
            hang_seconds=hang_seconds,
            step_made=self.reports.step,
        )

    def _data(self, module: Any) -> Any:
        """Builds the data module; returns None if the module has the loaders."""
        from lightning.pytorch import LightningDataModule
        from lightning.pytorch.utilities.model_helpers import is_overridden

        from training.model.instantiate import construct

        _, given = self.spec.trained()
        if given is None:
            if not is_overridden("train_dataloader", module):
                raise BuildError("data", "is required: the model has no train_dataloader of its own")
            return None
        data = construct(given, "data")
        if not isinstance(data, LightningDataModule):
            raise BuildError(
                "data.class_path",
                f"{given.class_path} gives a {type(data).__name__}, not a LightningDataModule",
            )
        if not is_overridden("train_dataloader", data):
            raise BuildError("data.class_path", f"{type(data).__name__} has no train_dataloader")
        return data

    @contextmanager
    def _tracker(self) -> Iterator[Tracker]:
        """Yields the tracker of rank 0, or a null object on the other ranks."""
        from training.tracking.tracker import Fanout, JsonLines, NullTracker

        uri, run_id = self.order.mlflow_uri, self.order.run_id
        with ExitStack() as stack:
            if uri and run_id and self.assignment.local_rank == 0:
                # In this thread: an import in another one can wait for ever while user code, here, is within
                # mlflow.autolog(), which holds a lock that all imports need.
                import_module("mlflow.system_metrics.system_metrics_monitor")
                from training.tracking.system_metrics import SystemMetrics

                stack.enter_context(SystemMetrics(uri, run_id, self.assignment.node_rank))
            if self.rank != 0:
                yield NullTracker()
                return
            trackers: list[Tracker] = [ProgressTracker(self.reports.progress)]
            if self.order.output:
                trackers.append(JsonLines(Path(self.order.output) / "metrics.jsonl"))
            if uri and run_id:
                trackers.append(self._mlflow(uri, run_id))
            tracker = Fanout(trackers)
            try:
                yield tracker
            except BaseException:
                # The user must see this error, not that the last metrics were not sent: they are in the
                # spool, and the next attempt sends them.
                with suppress(Exception):
                    tracker.close(wait=False)
                raise
            tracker.close()

    def _mlflow_run(self) -> MlflowRun:
        """Returns the run that user code writes to."""
        from training.tracking.mlflow_run import DiscardedRun, LocalRun, ServerRun

        if self.rank != 0:
            return DiscardedRun()
        if self.order.mlflow_uri and self.order.run_id:
            return ServerRun(self.order.mlflow_uri, self.order.run_id)
        return LocalRun(
            Path(self.order.output or self.order.folder),
            experiment=self.spec.tracking.experiment,
            name=self.spec.name,
            id_file=self.folder.mlflow_run_id,
        )

    def _mlflow(self, uri: str, run_id: str) -> Tracker:
        from training.tracking.dataset import Dataset
        from training.tracking.mlflow_tracker import MlflowTracker

        return MlflowTracker(
            uri,
            run_id,
            params=used_by_any_module(self.spec),
            tags=self._tags(),
            dataset=Dataset.of(self.spec),
            spool=self.folder.spool,
            register_as=self.spec.tracking.register_as,
        )

    def _tags(self) -> dict[str, str]:
        """Returns facts that are not in the spec, and settings that change what the curves mean."""
        settings = self.spec.training
        tags = {"syncbn.world_size": str(self.world_size), "syncbn.norm": self.spec.norm.kind}
        if settings.sampler == "own":
            tags["syncbn.sampler"] = "own: depends on the number of workers"
        if settings.accumulate_grad_batches > 1:
            parts = settings.accumulate_grad_batches
            samples = settings.global_batch_size and f"{settings.global_batch_size / parts:g} samples: "
            tags["syncbn.statistics_over"] = f"{samples or ''}a part of an accumulated batch"
        if self.order.restarts:
            tags["syncbn.restarts"] = "\n".join(self.order.restarts)
        return tags

    def _print_on_rank_0(self, text: str) -> None:
        if self.rank == 0:
            say(text)


def used_by_any_module(spec: Spec) -> dict[str, str]:
    """Returns the parameters of a spec without those that a LightningModule does not use."""
    return {key: value for key, value in flat(spec).items() if not key.startswith(("loss.", "metrics."))}


def _build_model(spec: Spec) -> Any:
    from training.model.instantiate import construct
    from training.model.supervised import checked_module

    return checked_module(construct(spec.trained()[0], "model"), spec)
