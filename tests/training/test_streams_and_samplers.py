"""Streams and samplers give the same result on 1, 2 and 3 workers; streams that of a plain Trainer."""

from __future__ import annotations

import json
import warnings
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

from tests.training import lab_streams
from tests.training.attempts import Done, attempt
from tests.training.lab_modules import COLLATED, VALIDATION, Samples
from tests.training.worlds import Worlds
from training.errors import is_lost_peer

EPOCHS = 2
BATCH = lab_streams.BATCH
SAMPLERS = [
    "weighted",
    "weighted, with a generator",
    "subset",
    "with replacement",
    "fewer",
    "without a length",
    "buckets",
    "more buckets",
    "batches of a sampler",
]


def plain(
    train: DataLoader[Any],
    val: DataLoader[Any],
    test: DataLoader[Any] | None = None,
    *,
    micro_batches: int = 1,
) -> dict[str, Tensor]:
    """The weights, and the mean losses of validation and test, that Lightning gives without this project."""
    seed_everything(42, verbose=False)
    model = lab_streams.Stoppable().double()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        precision="64-true",
        max_epochs=EPOCHS,
        accumulate_grad_batches=micro_batches,
        logger=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, train, val)
        found = {**model.state_dict(), "val_loss": trainer.callback_metrics["val_loss"]}
        if test is not None:
            trainer.test(model, test, verbose=False)
            found["test_loss"] = trainer.callback_metrics["test_loss"]
    return found


def with_processes(rank: int, spec: dict[str, Any], folder: Path, stop_after: int | None = None) -> Done:
    """An attempt whose loaders may have processes."""
    current_process().daemon = False
    return attempt(rank, spec, folder, stop_after=stop_after)


def spec_of(data: str, *, batch: int = BATCH, micro_batches: int = 1, **init_args: Any) -> dict[str, Any]:
    return {
        "model": {"class_path": "tests.training.lab_streams.Stoppable"},
        "data": {"class_path": f"tests.training.lab_streams.{data}", "init_args": init_args},
        "training": {
            "global_batch_size": batch,
            "accumulate_grad_batches": micro_batches,
            "max_epochs": EPOCHS,
            "precision": "64-true",
            "seed": 42,
        },
    }


def ours(
    worlds: Worlds, workers: int, spec: dict[str, Any], folder: Path, stop_after: int | None = None
) -> tuple[dict[str, Any], Done]:
    """The weights and the last value of each metric, and what rank 0 left."""
    done = worlds.run(workers, with_processes, spec, folder, stop_after)[0]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    values = [row["val_loss"] for row in rows if "val_loss" in row]
    losses = torch.tensor([row["train_loss"] for row in rows if "train_loss" in row], dtype=torch.float64)
    val_loss = torch.tensor(values[-1] if values else torch.nan, dtype=torch.float64)
    assert done.stopped or len(values) == EPOCHS
    found = {**done.state, "val_loss": val_loss, "train_loss": losses}
    for row in rows:
        if "test_loss" in row:
            found["test_loss"] = torch.tensor(row["test_loss"], dtype=torch.float64)
    return found, done


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    found = {name: found[name] for name in expected}
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("known", [False, True], ids=["unknown length", "known length"])
@pytest.mark.parametrize("processes", [0, 2])
def test_a_stream_gives_what_a_plain_trainer_gives(
    worlds: Worlds, tmp_path: Path, known: bool, processes: int
) -> None:
    options: dict[str, Any] = {"known": known, "processes": processes}
    data = lab_streams.Streams(**options)
    expected = plain(data.train_dataloader(), data.val_dataloader(), data.test_dataloader())

    for workers in (1, 2, 3):
        found, _ = ours(worlds, workers, spec_of("Streams", **options), tmp_path / str(workers))

        assert_equal(found, expected)


@pytest.mark.parametrize("known", [False, True], ids=["unknown length", "known length"])
def test_micro_batches_of_a_stream_are_accumulated(worlds: Worlds, tmp_path: Path, known: bool) -> None:
    """20 samples in global batches of 8, 8 and 4, each in two micro-batches."""
    samples = [Samples(20, 1)[index] for index in range(20)]
    micro = [samples[0:4], samples[4:8], samples[8:12], samples[12:16], samples[16:18], samples[18:20]]
    batches: Any = [COLLATED["tuple"](part) for part in micro]
    val = DataLoader(Samples(VALIDATION, 2), batch_size=8, collate_fn=COLLATED["tuple"])
    expected = plain(DataLoader(batches, batch_size=None), val, micro_batches=2)

    for workers in (1, 2, 3):
        spec = spec_of("Streams", batch=8, micro_batches=2, count=20, known=known)
        found, _ = ours(worlds, workers, spec, tmp_path / str(workers))

        assert_equal(found, expected)


@pytest.mark.parametrize("options", [{"noise": 0.1}, {"noise": 0.1, "processes": 2}, {"kind": "own class"}])
def test_a_stream_that_draws_or_has_batches_of_its_own_kind_does_not_depend_on_workers(
    worlds: Worlds, tmp_path: Path, options: dict[str, Any]
) -> None:
    spec = spec_of("Streams", **options)
    expected, _ = ours(worlds, 1, spec, tmp_path / "1")

    for workers in (2, 3):
        found, _ = ours(worlds, workers, spec, tmp_path / str(workers))
        assert_equal(found, expected)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_sampler_does_not_depend_on_workers(
    worlds: Worlds, tmp_path: Path, kind: str, micro_batches: int
) -> None:
    batch = {1: 6, 2: 8}[micro_batches]  # the last one leaves a rank without a sample
    spec = spec_of("Sampled", kind=kind, batch=batch, micro_batches=micro_batches)
    expected, alone = ours(worlds, 1, spec, tmp_path / "1")

    for workers in (2, 3):
        found, done = ours(worlds, workers, spec, tmp_path / str(workers))
        assert_equal(found, expected)
        assert done.said.count(f"global_batch_size ({batch}) is not used") == ("buckets" in kind)
        assert "does not follow from seed and epoch" not in done.said
    epochs = [row["epoch"] for row in alone.rows if "train_loss" in row]
    lengths = {"buckets": (4, 3), "more buckets": (3, 4), "weighted": (4, 4) if batch == 6 else (3, 3)}
    assert lengths.get(kind) in (None, (epochs.count(0), epochs.count(1)))


@pytest.mark.parametrize(
    ("spec", "stop_after"),
    [
        (spec_of("Streams", noise=0.1, count=20, batch=8, micro_batches=2), 3),
        (spec_of("Streams", noise=0.1, count=20, batch=8, micro_batches=2), 10),
        (spec_of("Streams", noise=0.1, known=True), 6),
        (spec_of("Sampled", kind="buckets"), 2),
        (spec_of("Sampled", kind="more buckets"), 5),
        (spec_of("Sampled", kind="weighted", batch=6), 6),
    ],
)
def test_a_run_goes_on_within_an_epoch_as_if_it_had_not_stopped(
    worlds: Worlds, tmp_path: Path, spec: dict[str, Any], stop_after: int
) -> None:
    expected, _ = ours(worlds, 1, spec, tmp_path / "whole")

    _, stopped = ours(worlds, 2, spec, tmp_path / "parts", stop_after)
    found, _ = ours(worlds, 3, spec, tmp_path / "parts")

    assert stopped.stopped
    assert_equal(found, expected)


def test_an_order_that_cannot_be_repeated_is_said_once(worlds: Worlds, tmp_path: Path) -> None:
    expected, _ = ours(worlds, 1, spec_of("Sampled", kind="private"), tmp_path / "1")

    found, done = ours(worlds, 2, spec_of("Sampled", kind="private"), tmp_path / "2")

    assert done.said.count("the order of Private does not follow from seed and epoch alone") == 1
    assert_equal(found, expected)


def error_of(rank: int, spec: dict[str, Any], folder: Path) -> tuple[str, bool]:
    """The error that ends an attempt, and whether it is only another rank's."""
    try:
        attempt(rank, spec, folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}", is_lost_peer(error)
    return "", False


def test_an_error_of_a_stream_ends_all_ranks(worlds: Worlds, tmp_path: Path) -> None:
    own, *others = worlds.run(3, error_of, spec_of("Streams", fails_at=6), tmp_path)

    assert own == ("LookupError: a broken shard", False)
    told = "RankZeroFailed: rank 0 could not give this rank its data: LookupError: a broken shard"
    assert others == [(told, True)] * 2


def test_validation_may_become_shorter_but_not_longer(worlds: Worlds, tmp_path: Path) -> None:
    shorter = worlds.run(2, error_of, spec_of("Validated", batch=3, kind="buckets"), tmp_path / "shorter")
    longer = worlds.run(2, error_of, spec_of("Validated", batch=3, kind="more buckets"), tmp_path / "longer")

    assert shorter == [("", False)] * 2
    for message, _ in longer:
        assert "data.val_dataloader: its sampler gives 4 batches in epoch 1, but gave 3" in message
