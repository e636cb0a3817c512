"""What a user's own loggers and checkpoint callbacks write, continued by each start of a run.

A run that is paused, resized or restarted then leaves what it would have left without: one folder of each
logger, each row of metrics once, and as many checkpoints as the callbacks keep. So a start drops what was
written after the checkpoint that it goes on from, and writes it again.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger

from training import internals
from training.callbacks.own_checkpoints import WrittenCheckpoints
from training.callbacks.train_state import TrainState
from training.rank.context import RankContext
from training.rank.starting_point import all_gather
from training.run_dir import RunFolder


class OwnOutput:
    """The output of the loggers in the spec, and the checkpoints that the user's code has written so far.

    Making one is collective: every rank must do it. It gives each logger that counts its versions the one of
    the run's first start, on all ranks. loggers: None stands for the job's own.
    """

    def __init__(self, loggers: Sequence[Logger | None], folder: RunFolder, context: RankContext) -> None:
        self.written = WrittenCheckpoints(folder.written_checkpoints)
        self._loggers = {
            f"{index} {type(logger).__name__}": logger for index, logger in enumerate(loggers) if logger
        }
        self._is_rank_0 = context.rank == 0
        self._csv: dict[str, internals.CsvWriter] = {}
        own = _versions(self._loggers, folder.logger_versions) if self._is_rank_0 else {}
        for key, version in all_gather(own, context)[0].items():
            internals.set_version(self._loggers[key], version)

    def go_on(self, state: TrainState | None) -> None:
        """Drops what was written after `state` was saved; None: all of it. Needs a Trainer to be there."""
        if not self._is_rank_0:
            return
        if state is not None:
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        saved = state.own_output if state else {}
        for path in self.written.cut(saved.get("checkpoints", 0)):
            TorchCheckpointIO().remove_checkpoint(path)
        for key, logger in self._loggers.items():
            if isinstance(logger, CSVLogger):
                self._csv[key] = writer = internals.CsvWriter(logger)
                kept = saved.get("csv", {}).get(key, {"rows": 0, "pending": []})
                keys, rows = cut_rows(writer.path, kept["rows"])
                writer.go_on(keys, rows, kept["pending"])

    def state(self) -> dict[str, Any]:
        """Returns what `go_on` needs to know. Rank 0 only."""
        rows = {
            key: {"rows": writer.rows, "pending": [_plain(row) for row in writer.pending]}
            for key, writer in self._csv.items()
        }
        return {"checkpoints": len(self.written), "csv": rows}


def _versions(loggers: dict[str, Logger], file: Path) -> dict[str, int]:
    """Returns the versions of loggers that count them, by key, and keeps them in the file."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    versions: dict[str, int] = {}
    for key, logger in loggers.items():
        if internals.counts_versions(logger):
            kept.setdefault(key, logger.version)
            internals.set_version(logger, kept[key])
            versions[key] = kept[key]
            _make_folder(logger)
    if versions:
        temporary = file.with_suffix(".new")
        temporary.write_text(json.dumps(kept))
        temporary.replace(file)
    return versions


def cut_rows(path: str, rows: int) -> tuple[list[str], int]:
    """Deletes a CSV file's rows after the first ones; returns its columns and the number of rows left.

    path: may be a URL. Without rows it deletes the file. Atomic in a folder.
    """
    files = get_filesystem(path)
    if not files.isfile(path):  # not written yet, or deleted by the user
        return [], 0
    if not rows:
        files.rm_file(path)
        return [], 0
    with files.open(path, "r", newline="") as old, files.open(f"{path}.cut", "w", newline="") as new:
        reader = csv.DictReader(old)
        keys, left = list(reader.fieldnames or []), list(islice(reader, rows))
        writer = csv.DictWriter(new, keys)
        writer.writeheader()
        writer.writerows(left)
    files.mv(f"{path}.cut", path)
    return keys, len(left)


def _make_folder(logger: Logger) -> None:
    """Makes the folder of a version, so that the next logger counts on from it."""
    folder = getattr(logger, "log_dir", None)
    if isinstance(folder, str) and "://" not in folder:
        Path(folder).mkdir(parents=True, exist_ok=True)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row as it is written, without values of classes that a checkpoint could not hold."""
    plain = (bool, int, float, str, type(None))
    return {name: value if type(value) in plain else str(value) for name, value in row.items()}
