"""Runs that start from a checkpoint of another run: with its weights, or where it was."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from tests.training.attempts import Data, Done, Logs, attempt, spec_of
from tests.training.worlds import Worlds
from training.errors import BuildError

STEPS = 22
"""Steps of an epoch."""


def checkpoints(folder: Path) -> str:
    return str(folder / "run" / "checkpoints")


def run(
    worlds: Worlds, spec: Mapping[str, Any], folder: Path, *, source: str | None = None, workers: int = 2
) -> Done:
    return worlds.run(workers, attempt, spec, folder, start_from=source)[0]


def refused(rank: int, spec: Mapping[str, Any], folder: Path, source: str) -> str:
    """Returns why a run does not start. On every rank, so that none waits for the others."""
    try:
        attempt(rank, spec, folder, start_from=source)
    except BuildError as error:
        return str(error)
    raise AssertionError("it trained")


def plain_training(_rank: int, folder: Path) -> int:
    """Trains two epochs of 20 steps without this project; returns the number of steps."""
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        callbacks=[ModelCheckpoint(dirpath=folder, filename="plain")],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Logs().double(), Data(train=20))
    return trainer.global_step


def resumed_by_lightning(_rank: int, file: Path) -> tuple[int, int]:
    """Goes on to the end of a third epoch without this project; returns the first and the last step."""

    class Batches(Data):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(super().train_dataloader().dataset, batch_size=7)

    first: list[int] = []

    class Steps(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            first.append(trainer.global_step)

    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=1,
        callbacks=[Steps()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Logs().double(), Batches(), ckpt_path=file, weights_only=False)
    return first[0], trainer.global_step


def going_on(spec: Mapping[str, Any], **training: Any) -> dict[str, Any]:
    """The spec of a run that goes on with one of another spec."""
    start_from = {"job": "another", "checkpoint": "last", "state": "all"}
    return {**spec, "start_from": start_from, "training": spec["training"] | training}


def of_logs(**training: Any) -> dict[str, Any]:
    """A user's own LightningModule."""
    spec = {key: value for key, value in spec_of(**training).items() if key in {"data", "training"}}
    return spec | {"model": {"class_path": "tests.training.attempts.Logs"}}


class Hooked(Logs):
    """Draws at random when an epoch starts, and changes with the epoch."""

    def on_train_epoch_start(self) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = 0.01 * float(torch.rand(())) / (1 + self.trainer.current_epoch)


class Tuned(Logs):
    """Its optimizer and scheduler are made from arguments and from the length of the training."""

    def __init__(self, lr: float = 0.05, classes: int = 3, *, until_end: bool = False) -> None:
        super().__init__()
        self.lr, self.until_end = lr, until_end
        self.net.layers[-1] = torch.nn.Linear(8 * 16, classes)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        epochs = self.trainer.max_epochs if self.until_end else 4
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs or 1)]


def tuned(**init_args: Any) -> dict[str, Any]:
    model = {"class_path": "tests.training.test_started_runs.Tuned", "init_args": init_args}
    return of_logs() | {"model": model}


HOOKED = {**of_logs(), "model": {"class_path": "tests.training.test_started_runs.Hooked"}}


@pytest.mark.parametrize(
    ("spec", "first", "longer"),
    [
        (spec_of(noise=0.3), {"max_epochs": 2}, {"max_epochs": 4}),
        (spec_of(noise=0.3), {"max_steps": 30}, {"max_steps": 70}),
        (spec_of(noise=0.3), {"max_steps": 44, "max_epochs": None}, {"max_steps": 70, "max_epochs": None}),
        (of_logs(), {"max_steps": 30}, {"max_steps": 70}),
        (HOOKED, {"max_epochs": 2}, {"max_epochs": 4}),
    ],
    ids=["epochs", "within an epoch", "steps that end with an epoch", "a module that logs", "hooks"],
)
def test_a_run_made_longer_is_the_longer_run_bit_for_bit(
    worlds: Worlds, tmp_path: Path, spec: dict[str, Any], first: dict[str, Any], longer: dict[str, Any]
) -> None:
    longer = {"max_epochs": 4} | longer
    whole = run(worlds, spec | {"training": spec["training"] | longer}, tmp_path / "whole")

    run(worlds, spec | {"training": spec["training"] | {"max_epochs": 4} | first}, tmp_path / "first")
    source = checkpoints(tmp_path / "first")
    done = run(worlds, going_on(spec, **longer), tmp_path / "more", source=source)

    ended = (tmp_path / "first" / "metrics.jsonl").read_text().count("\n")
    assert done.rows[0]["step"] == ended + 1
    assert done.rows == whole.rows[ended:]
    torch.testing.assert_close(done.state, whole.state, rtol=0, atol=0)


def test_a_run_made_longer_may_stop_and_change_its_workers(worlds: Worlds, tmp_path: Path) -> None:
    spec = spec_of()
    whole = run(worlds, spec | {"training": spec["training"] | {"max_epochs": 4}}, tmp_path / "whole")
    run(worlds, spec, tmp_path / "first")

    longer, source = going_on(spec, max_epochs=4), checkpoints(tmp_path / "first")
    stopped = worlds.run(2, attempt, longer, tmp_path / "more", stop_after=3, start_from=source)[0]
    shutil.rmtree(source)  # from here on it has its own
    done = run(worlds, longer, tmp_path / "more", source=source, workers=3)

    assert stopped.stopped
    assert [row["step"] for row in done.rows] == list(range(45, 89))
    for name in ("train_loss", "val_loss"):
        expected = {step: value for step, value in whole.series(name).items() if step > 44}
        assert done.series(name) == pytest.approx(expected, rel=1e-9)


def test_weights_alone_are_those_of_the_chosen_checkpoint(worlds: Worlds, tmp_path: Path) -> None:
    """Without learning, the weights that a run ends with are those that it began with."""
    first = run(worlds, spec_of(checkpoint={"keep_last": 1}), tmp_path / "first")
    source, curve = Path(checkpoints(tmp_path / "first")), first.series("val_loss")
    best = min(curve, key=curve.__getitem__)
    assert best != 44
    spec = spec_of(max_steps=1)
    spec["optimizer"]["init_args"] = {"lr": 0.0}

    for which, step in (("last", 44), ("best", best), (44, 44)):
        start_from = {"job": "another", "checkpoint": which}
        done = run(worlds, spec | {"start_from": start_from}, tmp_path / f"from {which}", source=str(source))

        file = source / f"step-{step:09d}" / "lightning.ckpt"
        saved = torch.load(file, weights_only=True)["state_dict"]
        assert done.rows[0]["step"] == 1
        for name, value in saved.items():
            if name.endswith(("weight", "bias")):
                torch.testing.assert_close(done.state[f"model.{name}"], value, rtol=0, atol=0)


def test_weights_come_from_files_too_and_ones_that_do_not_fit_are_refused(
    worlds: Worlds, tmp_path: Path
) -> None:
    first = run(worlds, spec_of(max_epochs=1), tmp_path / "first")
    state = {key.removeprefix("model."): value for key, value in first.state.items() if "model." in key}
    torch.save(state, tmp_path / "state.pt")
    save_file(state, tmp_path / "state.safetensors")
    other = {f"encoder.{key}": value for key, value in state.items()}
    torch.save(other, tmp_path / "other.pt")
    part = {key: value for key, value in state.items() if not key.startswith("layers.8")}
    torch.save(part, tmp_path / "part.pt")
    wrong = state | {"layers.8.weight": torch.zeros(4, 128, dtype=torch.float64)}
    torch.save(wrong, tmp_path / "wrong.pt")
    (tmp_path / "text.pt").write_text("no weights")

    def started(name: str, **keys: Any) -> Done:
        spec = spec_of(max_steps=1) | {"start_from": {"path": "that", **keys}}
        spec["optimizer"]["init_args"] = {"lr": 0.0}
        folder = tmp_path / f"run of {name} {keys}"
        return run(worlds, spec, folder, source=str(tmp_path / name))

    for name in ("state.pt", "state.safetensors"):
        weights = started(name).state
        same = {f"model.{key}": value for key, value in state.items() if key.endswith(("weight", "bias"))}
        torch.testing.assert_close({key: weights[key] for key in same}, same, rtol=0, atol=0)
    assert started("part.pt", strict=False).rows
    for name, keys, words in (
        (
            "part.pt",
            {},
            r"the checkpoint lacks layers\.8\.weight, layers\.8\.bias; .* start_from\.strict=false",
        ),
        ("other.pt", {"strict": False}, r"the model lacks encoder\.layers\.0\.weight, .* and 9 more"),
        (
            "wrong.pt",
            {"strict": False},
            r"layers\.8\.weight has shape \(4, 128\) in the checkpoint and",
        ),
        ("text.pt", {}, "cannot be read as weights"),
    ):
        spec = spec_of(max_steps=1) | {"start_from": {"path": "that", **keys}}
        reasons = worlds.run(2, refused, spec, tmp_path / "refused", str(tmp_path / name))
        assert all(re.search(rf"^start_from: .*{words}", reason) for reason in reasons), reasons


def test_a_whole_state_that_cannot_go_on_is_refused(worlds: Worlds, tmp_path: Path) -> None:
    run(worlds, spec_of(max_steps=30), tmp_path / "first")
    source = checkpoints(tmp_path / "first")
    file = next(Path(source).glob("step-000000030")) / "lightning.ckpt"
    alone = str(tmp_path / "alone.ckpt")
    shutil.copy(file, alone)
    torch.save({"state_dict": {}}, tmp_path / "weights.ckpt")

    for start, training, words in (
        (source, {"max_steps": 30}, "training.max_steps: is 30, and the checkpoint .* has 30 already"),
        (source, {"global_batch_size": 14}, "training.global_batch_size: is 14, and was 7"),
        (alone, {}, "was saved within an epoch"),
        (str(tmp_path / "weights.ckpt"), {}, "not a checkpoint of a training"),
    ):
        spec = going_on(spec_of(), max_epochs=4, **training)
        reasons = worlds.run(2, refused, spec, tmp_path / "more", start)
        assert all(re.search(words, reason) for reason in reasons), reasons
    spec = spec_of() | {"start_from": {"job": "another", "checkpoint": 7}}
    (reason, _) = worlds.run(2, refused, spec, tmp_path / "more", source)
    assert "it has no checkpoint of step 7; it has those of the steps 22, 30" in reason


def test_a_checkpoint_of_a_plain_trainer_goes_on(worlds: Worlds, tmp_path: Path) -> None:
    """As `ckpt_path` of a configuration of LightningCLI."""
    steps = worlds.run(1, plain_training, tmp_path)[0]

    spec = of_logs(max_epochs=3) | {"start_from": {"path": "that", "state": "all"}}
    done = run(worlds, spec, tmp_path / "more", source=str(tmp_path / "plain.ckpt"))

    assert (done.rows[0]["step"], done.rows[0]["epoch"]) == (steps + 1, 2)
    assert len(done.rows) == STEPS
    assert {row["epoch"] for row in done.rows} == {2}


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({"lr": 0.05}, {"lr": 0.01}, r"SGD\.lr was 0\.05 and is 0\.01.*\(state: weights\)"),
        ({"until_end": True}, {"until_end": True}, r"CosineAnnealingLR\.T_max was 2 and is 4"),
        ({}, {"classes": 4}, r"size mismatch for net\.layers\.8\.weight.*the model that saved it"),
    ],
    ids=["another rate", "a schedule until the end", "another model"],
)
def test_a_state_that_would_replace_what_the_model_makes_now_is_refused(
    worlds: Worlds, tmp_path: Path, before: dict[str, Any], now: dict[str, Any], words: str
) -> None:
    run(worlds, tuned(**before), tmp_path / "first")
    spec = going_on(tuned(**now), max_epochs=4)
    reasons = worlds.run(2, refused, spec, tmp_path / "more", checkpoints(tmp_path / "first"))
    assert all(re.search(rf"^start_from.*{words}", reason, re.DOTALL) for reason in reasons), reasons


@pytest.mark.parametrize("training", [{"max_epochs": 2}, {"max_steps": 30}], ids=["an epoch", "within one"])
def test_lightning_alone_goes_on_from_a_checkpoint(
    worlds: Worlds, tmp_path: Path, training: dict[str, int]
) -> None:
    run(worlds, of_logs(**training), tmp_path / "first")
    steps = 30 if "max_steps" in training else 2 * STEPS
    file = Path(checkpoints(tmp_path / "first")) / f"step-{steps:09d}" / "lightning.ckpt"

    first, last = worlds.run(1, resumed_by_lightning, file)[0]

    assert (first, last) == (steps + 1, 3 * STEPS)


def test_weights_of_a_model_with_batch_norm_start_one_with_another_normalisation(
    worlds: Worlds, tmp_path: Path
) -> None:
    spec = spec_of(max_steps=2, max_epochs=None)
    run(worlds, spec, tmp_path / "first")
    source = checkpoints(tmp_path / "first")

    def starting(kind: str, *, strict: bool) -> dict[str, Any]:
        start_from = {"job": "another", "state": "weights", "strict": strict}
        return spec | {"norm": {"kind": kind}, "start_from": start_from}

    renorm = run(worlds, starting("batch_renorm", strict=True), tmp_path / "renorm", source=source)
    assert renorm.state["model.layers.1.num_batches_tracked"] == 4
    response = starting("filter_response_norm", strict=False)
    found = run(worlds, response, tmp_path / "response", source=source)
    assert "model.layers.1.tau" in found.state
    why = worlds.run(2, refused, starting("none", strict=True), tmp_path / "none", source)[0]
    assert "the model lacks layers.1.running_mean" in why
    assert why.endswith("leave these out with start_from.strict=false")
