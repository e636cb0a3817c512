"""Both sides of a row of the table that a job gives what a plain Lightning Trainer gives."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from tests.training import lab_modules
from tests.training.attempts import attempt
from tests.training.lightning_rows import Row
from tests.training.worlds import Worlds
from training.model.norms import apply_norm, layer_sync
from training.spec import Norm

EPOCHS, BATCH = 2, 4


class Result(NamedTuple):
    """losses: of each batch that has one, the last. logged: the values of each name, in order of steps.

    calls: what the module, the data module and a callback have noted. files: that the module has written.
    state: the module's state_dict.
    """

    losses: list[float]
    logged: dict[str, list[float]]
    calls: list[str]
    files: list[str]
    state: dict[str, Tensor]


def as_lightning(row: Row) -> Result:
    """What Lightning gives without this project. Files are written to the working directory."""
    seed_everything(42, verbose=False)
    data: Any = getattr(lab_modules, row.data)(row.kind, BATCH // row.accumulate)
    model: LightningModule = getattr(lab_modules, row.module)(**row.arguments).double()
    if row.norm:
        _normalise(model, row)
    logger, losses = _Records(), _LastLosses(row.accumulate)
    backward = model.backward

    def recorded(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        losses.last = float(loss.detach()) * row.accumulate
        backward(loss, *args, **kwargs)

    model.backward = recorded  # type: ignore[method-assign]
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        precision="64-true",
        max_epochs=EPOCHS,
        accumulate_grad_batches=row.accumulate,
        logger=logger,
        callbacks=[losses],
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, datamodule=data)
        if hasattr(data, "test_dataloader") and row.data in lab_modules.TESTED:
            trainer.test(model, datamodule=data, verbose=False)
    del model.backward
    calls = [*getattr(model, "calls", [])]
    logged = {name: list(values.values()) for name, values in logger.values.items()}
    return Result(losses.found, logged, calls, _files(Path()), model.state_dict())


def _normalise(model: LightningModule, row: Row) -> None:
    """Puts the layers of `row.norm` in, in this process: tests of the layers compare them with formulas."""
    norm = Norm.model_validate(row.norm)
    apply_norm(model, norm)
    if norm.is_synchronized:
        layer_sync(norm, 0, row.accumulate).apply(model)


def as_job(worlds: Worlds, workers: int, row: Row, folder: Path) -> Result:
    """What a job gives on that many workers."""
    done = worlds.run(workers, attempt, spec_of(row), folder)[0]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row} - {"step", "epoch", "learning_rate"}
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return Result(
        values.pop("train_loss"), values, list(done.calls), _files(folder / "files"), dict(done.state)
    )


def spec_of(row: Row, **training: Any) -> dict[str, Any]:
    """The spec of the job of a row."""
    return {
        "model": {
            "class_path": f"tests.training.lab_modules.{row.module}",
            "init_args": dict(row.arguments),
        },
        "data": {
            "class_path": f"tests.training.lab_modules.{row.data}",
            "init_args": {"kind": row.kind},
        },
        "norm": dict(row.norm),
        "training": {
            "global_batch_size": BATCH,
            "max_epochs": EPOCHS,
            "precision": "64-true",
            "seed": 42,
            "accumulate_grad_batches": row.accumulate,
        }
        | training,
    }


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("own_checkpoints/*"))


class _Records(DummyLogger):
    """Keeps what is logged, by name and step."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, dict[int | None, float]] = defaultdict(dict)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            if name != "epoch":
                self.values[name][step] = float(value)


class _LastLosses(Callback):
    """Keeps the last loss of each batch that has one, as means over the micro-batches of a step."""

    def __init__(self, each: int) -> None:
        self.last: float | None = None
        self.found: list[float] = []
        self._each, self._step = each, list[float]()

    def on_train_batch_end(
        self, _trainer: Trainer, _module: LightningModule, _outputs: Any, _batch: Any, index: int
    ) -> None:
        self._step += [] if self.last is None else [self.last]
        self.last = None
        if (index + 1) % self._each == 0:
            self.found += [sum(self._step) / len(self._step)] if self._step else []
            self._step = []
