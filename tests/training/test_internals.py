"""Each private part of a library works as the training relies on; a failure names what an upgrade changed."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.distributed import get_rank
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler, TensorDataset
from torchmetrics import SumMetric

from training import group_internals, internals, metric_internals
from training.hangs.watchdog import _collectives


def new_trainer(steps: int = 2, epochs: int | None = None, strategy: Strategy | str = "auto") -> Trainer:
    return Trainer(
        accelerator="cpu",
        strategy=strategy,
        max_steps=steps,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class Logs(LightningModule):
    """Logs 1, 2, … for the epoch and keeps what Lightning has made of it by then."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.of_stage: list[float] = []
        self.of_epoch: list[float] = []

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        self.log("value", float(index + 1), on_step=False, on_epoch=True, batch_size=1)
        for found, results in (
            (self.of_stage, internals.logged_in_stage(self.trainer)),
            (self.of_epoch, internals.logged_in_epoch(self.trainer)),
        ):
            found.append(float(results["training_step.value"].value))
        assert len(internals.logged_in_stage(self.trainer).batch[0]) == 1
        loss: Tensor = self.layer(batch[0]).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SavesBetweenSteps(Callback):
    """Saves a checkpoint before the second step, and keeps the numbers of steps that loggers are told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.counts.append(trainer.fit_loop.epoch_loop._batches_that_stepped)
        if self.counts == [0, 1]:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kept", "counts"), [(True, [1]), (False, [2])])
def test_lightning_adds_a_step_when_it_goes_on_until_that_is_left_out(
    tmp_path: Path, kept: bool, counts: list[int]
) -> None:
    data = DataLoader(TensorDataset(torch.ones(2, 1)))
    first, second = SavesBetweenSteps(tmp_path / "a.ckpt"), SavesBetweenSteps(tmp_path / "a.ckpt")
    for callback, path in ((first, None), (second, first.path)):
        trainer = new_trainer()
        trainer.callbacks.append(callback)  # type: ignore[attr-defined]
        if kept:
            internals.keep_logged_steps(trainer)
        trainer.fit(Logs(), data, ckpt_path=path, weights_only=False)

    assert first.counts == [0, 1]
    assert second.counts == counts


def test_a_logger_counts_versions_that_is_given_none(tmp_path: Path) -> None:
    CSVLogger(tmp_path).log_hyperparams({})

    assert [internals.counts_versions(CSVLogger(tmp_path, version=given)) for given in (None, 3, "a")] == [
        True,
        False,
        False,
    ]
    assert not internals.counts_versions(DummyLogger())
    logger = CSVLogger(tmp_path)
    assert logger.version == 1
    internals.set_version(logger, 0)
    assert Path(logger.log_dir).name == "version_0"


def test_a_csv_logger_goes_on_in_its_file_after_the_rows_that_are_kept(tmp_path: Path) -> None:
    first = CSVLogger(tmp_path, version=0)
    writer = internals.CsvWriter(first)
    for step in range(4):
        first.log_metrics({"b": step / 2}, step)
        if step == 2:
            first.save()
    rows, pending = writer.rows, writer.pending
    second = CSVLogger(tmp_path, version=0)
    writer = internals.CsvWriter(second)
    writer.go_on(["b", "step"], rows, pending)
    second.log_metrics({"a": 1.0}, 4)
    second.finalize("success")

    assert (rows, pending, writer.rows) == (3, [{"b": 1.5, "step": 3}], 5)
    assert (Path(second.log_dir) / "metrics.csv").read_text().split() == [
        "a,b,step",
        ",0.0,0",
        ",0.5,1",
        ",1.0,2",
        ",1.5,3",
        "1.0,,4",
    ]
    assert [path.name for path in Path(second.log_dir).iterdir()] == ["metrics.csv"]


@pytest.mark.filterwarnings("ignore")
def test_lightning_keeps_what_a_stage_and_an_epoch_have_logged() -> None:
    module = Logs()
    new_trainer().fit(module, DataLoader(TensorDataset(torch.ones(2, 1))))

    assert module.of_stage == module.of_epoch == [1.0, 3.0]


def test_lightning_broadcasts_a_signal_before_each_batch_until_that_is_left_out() -> None:
    trainer = new_trainer()
    with patch.object(dist, "broadcast") as broadcast:
        _TrainingEpochLoop._broadcast_sigterm_tensor(trainer.fit_loop.epoch_loop)
    assert broadcast.called

    internals.skip_sigterm_broadcast(trainer)

    with patch.object(dist, "broadcast") as broadcast:
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    assert not broadcast.called


@pytest.mark.filterwarnings("ignore")
def test_an_epoch_has_the_length_that_is_set_before_it_and_ends_with_validation() -> None:
    class Lengths(Callback):
        validated: ClassVar[list[int]] = []

        def on_train_epoch_start(self, trainer: Trainer, _module: LightningModule) -> None:
            rows.n = [2, 4, 1][trainer.current_epoch]
            internals.set_epoch_length(trainer, rows.n)

        def on_validation_end(self, trainer: Trainer, _module: LightningModule) -> None:
            self.validated.append(trainer.global_step)

    class Rows(Sampler[int]):
        n = 2

        def __iter__(self) -> Iterator[int]:
            return iter(range(self.n))

        def __len__(self) -> int:
            return self.n

    class Validated(Logs):
        def validation_step(self, _batch: list[Tensor], _index: int) -> None: ...

    rows, data = Rows(), TensorDataset(torch.ones(4, 1))
    trainer = new_trainer(steps=7)
    trainer.callbacks.append(Lengths())  # type: ignore[attr-defined]

    trainer.fit(Validated(), DataLoader(data, sampler=rows), DataLoader(data))

    assert Lengths.validated[-3:] == [2, 6, 7]


@pytest.mark.filterwarnings("ignore")
def test_lightning_combines_loaders_to_train_and_to_evaluate_on() -> None:
    class Seen(Logs):
        def training_step(self, batch: Any, _index: int) -> Tensor:
            self.of_training = internals.loaders_to_train_on(self.trainer)
            self.lengths = internals.lengths_to_train_on(self.trainer)
            loss: Tensor = self.layer(batch[0][0]).mean()
            return loss

        def validation_step(self, _batch: list[Tensor], _index: int, dataloader_idx: int) -> None:  # noqa: ARG002
            self.of_validation = internals.loaders_to_evaluate_on(self.trainer)

    loaders = [DataLoader(TensorDataset(torch.ones(n, 1))) for n in (2, 3)]
    module = Seen()
    new_trainer(steps=3).fit(module, loaders, loaders)

    assert module.of_training == (loaders, "max_size_cycle")
    assert module.lengths == [2, 3]
    assert module.of_validation == (loaders, "sequential")


@pytest.mark.filterwarnings("ignore")
def test_lightning_reads_what_was_logged_after_the_calls_that_come_before() -> None:
    calls: list[str] = []

    class Reads(Logs):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            calls.append("step")
            self.log("value", float(index + 1), on_step=True, on_epoch=True, batch_size=1)
            loss: Tensor = self.layer(batch[0]).mean()
            return loss

    class Logger(DummyLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # noqa: ARG002
            calls.extend(name for name in metrics if name != "epoch")

    trainer = new_trainer()
    trainer.loggers = [Logger()]
    trainer.log_every_n_steps = 1  # type: ignore[attr-defined]
    internals.before_logged_is_read(trainer, lambda: calls.append("batch"), lambda: calls.append("epoch"))

    trainer.fit(Reads(), DataLoader(TensorDataset(torch.ones(2, 1))))

    assert without_repetitions(calls[:6]) == ["step", "batch", "value_step", "step", "batch", "value_step"]
    assert without_repetitions(calls[6:]) == ["epoch", "value_epoch"]


def without_repetitions(calls: list[str]) -> list[str]:
    return [call for index, call in enumerate(calls) if index == 0 or calls[index - 1] != call]


@pytest.mark.filterwarnings("ignore")
def test_a_value_can_be_logged_again_with_the_arguments_of_its_result() -> None:
    class Again(Logs):
        def validation_step(self, _batch: list[Tensor], index: int, dataloader_idx: int) -> None:  # noqa: ARG002
            self.log("value", float(index), on_step=True, on_epoch=True, batch_size=1, reduce_fx="max")
            results = internals.logged_in_stage(self.trainer)
            key = internals.logged_as(self, results, "value", add_dataloader_idx=True)
            keys.append(key)
            before = results[key]
            arguments = internals.arguments_of(before)
            assert internals.step_value(before) == index
            assert not internals.is_computed(before)

            internals.log_again(self.trainer, torch.tensor(7.0), torch.tensor(1.0), arguments)

            assert results[key] is before
            assert internals.arguments_of(before) == arguments
            assert internals.step_value(before) == 7
            internals.set_step_value(before, torch.tensor(9.0))
            assert internals.step_value(before) == 9
            assert before.value == 7  # of the epoch

    loader = DataLoader(TensorDataset(torch.ones(1, 1)))
    trainer, keys = new_trainer(steps=1), list[str]()
    trainer.fit(Again(), loader, [loader, loader])

    assert keys[-2:] == ["validation_step.value.0", "validation_step.value.1"]
    assert trainer.callback_metrics["value_epoch/dataloader_idx_1"] == 7


@pytest.mark.filterwarnings("ignore")
def test_a_step_may_be_skipped_though_there_are_several_ranks() -> None:
    class Skips(Logs):
        def training_step(self, batch: list[Tensor], index: int) -> Any:
            return None if index else super().training_step(batch, index)

    class OnOneDevice(SingleDeviceStrategy):
        def setup(self, trainer: Trainer) -> None:
            internals.allow_skipped_steps(trainer)
            super().setup(trainer)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            output = super().training_step(*args, **kwargs)
            return internals.SKIPPED if output is None else output

    trainer = new_trainer(steps=-1, epochs=1, strategy=OnOneDevice("cpu"))
    module = Skips()
    with patch.object(type(trainer), "world_size", 2):
        trainer.fit(module, DataLoader(TensorDataset(torch.ones(3, 1))))

    assert module.of_stage == [1.0]


def test_torch_knows_in_a_hook_what_a_backward_pass_will_reach() -> None:
    used, unused = (nn.Parameter(torch.ones(1)) for _ in range(2))
    nodes = [get_gradient_edge(parameter).node for parameter in (used, unused)]
    found: list[list[bool]] = []
    loss = (used * 2).sum()
    loss.register_hook(lambda _: found.append([internals.backward_reaches(node) for node in nodes]))  # type: ignore[no-untyped-call]

    loss.backward()  # type: ignore[no-untyped-call]

    assert found == [[True, False]]


def test_torch_counts_changes_in_place() -> None:
    tensor = torch.ones(2)
    before = internals.changes_in_place(tensor)

    tensor.add_(1)

    assert internals.changes_in_place(tensor) == before + 1


@contextmanager
def in_group(tmp_path: Path) -> Iterator[None]:
    """A process group of one rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_torch_keeps_hooks_for_gradients_with_their_parameter() -> None:
    parameter: Any = nn.Parameter(torch.ones(2))
    found = [internals.has_gradient_hooks(parameter)]
    for register in (parameter.register_hook, parameter.register_post_accumulate_grad_hook):
        hook = register(lambda _: None)
        found.append(internals.has_gradient_hooks(parameter))
        hook.remove()
        found.append(internals.has_gradient_hooks(parameter))

    assert found == [False, True, False, True, False]


def test_a_backward_pass_averages_only_if_it_was_prepared(tmp_path: Path) -> None:
    with in_group(tmp_path):
        ddp = DistributedDataParallel(nn.Linear(2, 1))
        reduced: list[int] = []

        def count(_state: object, bucket: Any) -> torch.futures.Future[Tensor]:
            reduced.append(bucket.index())
            future = torch.futures.Future[Tensor]()
            future.set_result(bucket.buffer())
            return future

        count.__annotations__.clear()  # torch compares them with classes, and these are text
        ddp.register_comm_hook(None, count)
        for prepares in (False, True, False, True):
            reduced.clear()
            with ddp.no_sync():
                loss = ddp(torch.ones(1, 2)).sum()
            if prepares:
                loss.register_hook(lambda _: internals.prepare_for_backward(ddp))
            loss.backward()
            assert bool(reduced) is prepares


def test_a_forward_pass_broadcasts_buffers_if_it_was_prepared(tmp_path: Path) -> None:
    with in_group(tmp_path):
        ddp = DistributedDataParallel(nn.BatchNorm1d(2))
        with patch.object(ddp, "_sync_buffers") as sync:
            for prepares in (True, False, True):
                sync.reset_mock()
                if prepares:
                    internals.prepare_forward_sync(ddp)
                with ddp.no_sync():
                    ddp(torch.ones(3, 2))
                assert sync.called is prepares


def test_torchmetrics_computes_a_batch_within_forward_and_takes_other_states() -> None:
    class Watched(SumMetric):
        def __init__(self) -> None:
            super().__init__()
            self.batches: list[bool] = []
            inner = self.compute

            def compute() -> Tensor:
                self.batches.append(metric_internals.computes_batch(self))
                value: Tensor = inner()
                return value

            self.compute = compute  # type: ignore[method-assign]

    metric = Watched()
    assert metric(2.0) == 2.0
    assert metric(3.0) == 3.0
    assert metric.compute() == 5.0
    assert metric.batches == [True, True, False]

    before = metric_internals.metric_state(metric)
    metric_internals.set_metric_state(metric, {"sum_value": torch.tensor(7.0)})
    assert metric.compute() == 7.0
    metric_internals.set_metric_state(metric, None)
    assert metric.compute() == 0.0
    metric_internals.restore_metric_state(metric, before)
    assert metric.compute() == 5.0
    assert metric_internals.update_count(metric) == 2


def test_torchmetrics_keeps_reductions_updates_and_the_last_value() -> None:
    metric = SumMetric()
    metric.update(2.0)
    assert metric.compute() == 2.0
    assert metric_internals.reductions(metric).keys() == {"sum_value"}
    assert metric_internals.update_count(metric) == 1

    metric.sum_value = torch.tensor(5.0)
    assert metric.compute() == 2.0
    metric_internals.forget_computed(metric)
    assert metric.compute() == 5.0
    metric_internals.set_update_count(metric, 7)
    assert metric.update_count == 7


def test_torch_walks_nested_containers() -> None:
    nested = {"a": [torch.ones(2), 1], "b": (torch.zeros(3),)}

    assert internals.tree_map(lambda leaf: leaf, nested).keys() == {"a", "b"}
    assert len(internals.tree_leaves(nested)) == 3


def test_torch_loads_a_numpy_array_without_running_code(tmp_path: Path) -> None:
    array = np.arange(3, dtype=np.uint32)
    torch.save(array, tmp_path / "array.pt")

    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "array.pt", weights_only=True)
    with torch.serialization.safe_globals(list(internals.PICKLED_ARRAY)):
        loaded = torch.load(tmp_path / "array.pt", weights_only=True)

    assert np.array_equal(loaded, array)


def test_a_process_group_counts_its_collectives(tmp_path: Path) -> None:
    assert internals.collectives_entered() is None
    assert _collectives() is None
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        before = internals.collectives_entered()
        dist.all_reduce(torch.ones(1))
        assert before is not None
        assert internals.collectives_entered() == before + 1 == _collectives()
    finally:
        dist.destroy_process_group()


def test_a_process_group_may_tell_another_rank_for_a_while(tmp_path: Path) -> None:
    with in_group(tmp_path):
        entered = internals.collectives_entered()
        with group_internals.seen_as_rank(3, 5):
            seen = get_rank(), dist.get_world_size(), dist.get_backend()
            assert internals.collectives_entered() == entered == _collectives()
            with pytest.raises(RuntimeError):
                dist.all_reduce(torch.ones(1))

        dist.all_reduce(torch.ones(1))
        assert seen == (3, 5, "gloo")
        assert (get_rank(), dist.get_world_size()) == (0, 1)


def test_tensors_of_a_transformation_are_told_from_others() -> None:
    seen: list[bool] = []

    def function(x: Tensor) -> Tensor:
        seen.append(internals.is_wrapped(x))
        return x

    torch.vmap(function)(torch.ones(2))

    assert seen == [True]
    assert not internals.is_wrapped(torch.ones(2))


@pytest.mark.filterwarnings("ignore")
def test_mlflow_takes_its_active_run_from_a_stack_for_each_thread() -> None:
    import mlflow

    seen: list[object] = []
    internals.replace_active_runs(lambda: ["of every thread"])
    try:
        thread = threading.Thread(target=lambda: seen.append(mlflow.active_run()))
        thread.start()
        thread.join()
        internals.add_active_run("within")
        seen.append(mlflow.active_run())
    finally:
        internals.replace_active_runs(list)

    assert seen == ["of every thread", "within"]
    assert mlflow.active_run() is None


def test_whether_ignore_index_is_named_is_known_from_the_number_that_torchs_losses_get() -> None:
    found: list[bool] = []

    def note(loss: Any, *args: Any) -> Tensor:
        found.append(internals.is_default_ignore_index(args[4]))
        result: Tensor = loss(*args)
        return result

    scores, classes = torch.zeros(2, 3), torch.tensor([0, -100])
    with internals.losses_replaced({"cross_entropy_loss": note, "nll_loss_nd": note}):
        for default in (nn.CrossEntropyLoss(), nn.NLLLoss(), F.cross_entropy, F.nll_loss):
            assert default(scores, classes) <= 2
        for named in (nn.CrossEntropyLoss(ignore_index=-100), nn.NLLLoss(ignore_index=-100)):
            assert named(scores, classes) <= 2
        for function in (F.cross_entropy, F.nll_loss):
            function(scores, classes, ignore_index=-100)
        partial(F.cross_entropy, ignore_index=-100)(scores, classes)
        pickle.loads(pickle.dumps(nn.CrossEntropyLoss(ignore_index=-100)))(scores, classes)

    F.cross_entropy(scores, classes)
    assert found == [True] * 4 + [False] * 6
