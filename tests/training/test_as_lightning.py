"""A job gives what a plain Lightning Trainer gives on one device over the same batches, on 1 to 3 workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.as_lightning import as_job, as_lightning, spec_of
from tests.training.attempts import attempt
from tests.training.lightning_rows import ROWS, Row
from tests.training.worlds import Worlds


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_job_gives_what_a_plain_trainer_gives(
    worlds: Worlds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path / "plain")
    expected = as_lightning(row)

    for workers in (1, 2, 3):
        found = as_job(worlds, workers, row, tmp_path / str(workers))

        assert found.losses == pytest.approx(expected.losses, rel=1e-9)
        assert found.logged.keys() == expected.logged.keys()
        for name, values in expected.logged.items():
            assert found.logged[name] == pytest.approx(values, rel=row.tolerance), name
        assert found.calls == expected.calls
        assert found.files == expected.files
        torch.testing.assert_close(found.state, expected.state, rtol=1e-9, atol=1e-9)


def test_a_data_module_is_torn_down(worlds: Worlds, tmp_path: Path) -> None:
    done = worlds.run(1, attempt, spec_of(Row(group="", what="", data="Hooked")), tmp_path)[0]

    assert done.said.count("teardown") == 1


RESUMED = [
    *(
        Row(group="", what="", module="WithCallback", arguments={"which": which})
        for which in ("best", "stop", "ema")
    ),
    Row(group="", what="", module="LogsAnywhere"),
    Row(group="", what="", module="Adversarial"),
    Row(group="", what="", module="AccumulatesByHand"),
    Row(group="", what="", module="HeadOfSomeBatches", data="Even", accumulate=2),
    Row(group="", what="", module="QuasiNewton"),
    Row(group="", what="", module="OfBoth", data="TrainsOnList"),
    Row(group="", what="", module="OfBoth", data="TrainsOnMax"),
    Row(group="", what="", module="OfBoth", data="TrainsOnShuffled"),
]


@pytest.mark.parametrize("row", RESUMED, ids=str)
def test_a_break_changes_nothing(worlds: Worlds, tmp_path: Path, row: Row) -> None:
    whole = as_job(worlds, 2, row, tmp_path / "whole")
    for after in (3, 2):
        stopped = worlds.run(2, attempt, spec_of(row), tmp_path / "parts", stop_after=after)[0]
        assert stopped.stopped
    parts = as_job(worlds, 2, row, tmp_path / "parts")

    assert parts.losses == whole.losses
    assert parts.logged == whole.logged
    assert parts.files == whole.files
    torch.testing.assert_close(parts.state, whole.state, rtol=0, atol=0)
