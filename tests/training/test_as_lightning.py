"""A job gives what a plain Lightning Trainer gives on one device over the same batches, on 1 to 3 workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from testing.ranks import RankError
from tests.training.as_lightning import as_job, as_lightning, spec_of
from tests.training.attempts import Data, attempt
from tests.training.attempts import spec_of as small_spec
from tests.training.lightning_rows import BATCH_RENORM, ROWS, Row
from tests.training.worlds import Worlds
from training.model.weights import weights_sha256

STEPS = 22
"""Of one epoch of the small spec: 150 samples, 7 in a batch."""


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
    Row(group="", what="", module="Convolves", norm=BATCH_RENORM),
    Row(group="", what="", module="Convolves", norm={"kind": "ghost_batch_norm", "samples": 2}),
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


def test_training_on_another_number_of_workers_goes_on_with_the_warm_up(
    worlds: Worlds, tmp_path: Path
) -> None:
    row = Row(group="", what="", module="Convolves", norm=BATCH_RENORM)
    whole = as_job(worlds, 1, row, tmp_path / "whole")
    assert worlds.run(3, attempt, spec_of(row), tmp_path / "parts", stop_after=2)[0].stopped
    parts = as_job(worlds, 2, row, tmp_path / "parts")

    assert parts.losses == pytest.approx(whole.losses, rel=1e-9)
    torch.testing.assert_close(parts.state, whole.state, rtol=1e-9, atol=1e-9)


def test_shares_of_whole_virtual_batches_train_as_one_worker_does(worlds: Worlds, tmp_path: Path) -> None:
    row = Row(
        group="", what="", module="Convolves", data="Even", norm={"kind": "ghost_batch_norm", "samples": 2}
    )
    one, two = (worlds.run(n, attempt, spec_of(row), tmp_path / str(n))[0] for n in (1, 2))

    assert two.series("train_loss") == pytest.approx(one.series("train_loss"), rel=1e-9)
    assert "cut into the same virtual batches of 2 samples as on one worker" in two.said
    three = worlds.run(3, attempt, spec_of(row), tmp_path / "3")[0]
    assert three.series("train_loss") != pytest.approx(one.series("train_loss"), rel=1e-3)
    assert "each worker's share, of 1 or 2; make every share a multiple of 2" in three.said


class ValidatesOnTwo(Data):
    """11 samples in one loader, 5 in the other."""

    def val_dataloader(self) -> Any:
        return [super().val_dataloader(), self.test_dataloader()]


def test_a_plain_module_has_metrics_for_each_of_several_loaders(worlds: Worlds, tmp_path: Path) -> None:
    path = "tests.training.test_as_lightning.ValidatesOnTwo"
    one, two = small_spec(max_epochs=2), small_spec(max_epochs=2)
    two["data"] = one["data"] | {"class_path": path}
    expected = worlds.run(1, attempt, one, tmp_path / "one")[0]

    for workers in (1, 3):
        found = worlds.run(workers, attempt, two, tmp_path / str(workers))[0]

        for name in ("val_loss", "val_accuracy"):
            first = found.series(f"{name}/dataloader_idx_0")
            assert first == pytest.approx(expected.series(name), rel=1e-9)
            last = found.series(f"{name}/dataloader_idx_1")
            test = found.series(name.replace("val", "test"))
            assert list(last.values())[-1] == pytest.approx(next(iter(test.values())), rel=1e-9)


def test_layers_made_in_configure_model_are_normalised_as_the_spec_says(
    worlds: Worlds, tmp_path: Path
) -> None:
    spec = spec_of(Row(group="", what="", module="MadeLate")) | {"norm": {"kind": "group_norm"}}
    done = worlds.run(2, attempt, spec, tmp_path)[0]

    assert not [name for name in done.state if "running" in name]
    assert "net.1.weight" in done.state
    assert done.said.count("norm.kind group_norm") == 1
    assert "norm.kind group_norm: 1 BatchNorm1d replaced by GroupNorm: net.1" in done.said


def test_any_iterable_of_batches_is_a_loader_for_those_who_want_their_own(
    worlds: Worlds, tmp_path: Path
) -> None:
    row = Row(group="", what="", data="TrainsOnIterable")
    expected = as_lightning(row)
    worlds.run(2, attempt, spec_of(row, sampler="own"), tmp_path)
    one = worlds.run(1, attempt, spec_of(row, sampler="own"), tmp_path / "one")[0]

    assert list(one.series("train_loss").values()) == pytest.approx(expected.losses)
    assert list(one.series("val_loss").values()) == pytest.approx(expected.logged["val_loss"])
    with pytest.raises(RankError, match=r"Batches cannot be shared .* set training\.sampler to own"):
        worlds.run(2, attempt, spec_of(row), tmp_path)


@pytest.mark.parametrize(
    ("monitor", "trainer", "ends_after", "logged"),
    [
        ("val_nope", {}, 1, "train_accuracy, val_accuracy, val_loss"),
        ("val_nope", {"check_val_every_n_epoch": 2}, 2, "train_accuracy, val_accuracy, val_loss"),
        ("val_nope", {"limit_val_batches": 0}, 1, "train_accuracy"),
        ("val_accuracy", {"check_val_every_n_epoch": 2}, None, ""),
        ("val_loss", {"limit_val_batches": 0}, None, ""),
    ],
    ids=["missing", "missing from a late validation", "no validation", "of a late validation", "the default"],
)
def test_a_metric_to_monitor_that_is_never_logged_ends_the_run_as_soon_as_that_is_known(
    worlds: Worlds, tmp_path: Path, monitor: str, trainer: dict[str, Any], ends_after: int | None, logged: str
) -> None:
    """As with Lightning's ModelCheckpoint."""
    spec = small_spec(max_epochs=3, checkpoint={"monitor": monitor}) | {"trainer": trainer}

    if ends_after is None:
        worlds.run(2, attempt, spec, tmp_path)
        assert last_step(tmp_path) == 3 * STEPS
        return
    with pytest.raises(RankError, match=f"no metric '{monitor}' was logged .* these were: {logged}\\."):
        worlds.run(2, attempt, spec, tmp_path)
    assert last_step(tmp_path) == ends_after * STEPS


def last_step(folder: Path) -> int:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return max(int(json.loads(line)["step"]) for line in lines if "train_loss" in line)


def test_backward_of_the_loss_itself_is_refused_where_gradients_would_not_be_averaged(
    worlds: Worlds, tmp_path: Path
) -> None:
    row = Row(group="", what="", module="CallsBackward")
    expected = as_lightning(row)
    one = worlds.run(1, attempt, spec_of(row), tmp_path / "1")[0]
    torch.testing.assert_close(dict(one.state), expected.state, rtol=1e-9, atol=1e-9)

    with pytest.raises(RankError, match=r"call self\.manual_backward\(loss\) in place of loss\.backward"):
        worlds.run(2, attempt, spec_of(row), tmp_path / "2")


def test_a_loader_that_changes_its_batches_itself_is_refused(worlds: Worlds, tmp_path: Path) -> None:
    with pytest.raises(RankError, match="a Doubling, has an __iter__ of its own"):
        worlds.run(1, attempt, spec_of(Row(group="", what="", data="Doubled")), tmp_path)


@pytest.mark.parametrize("module", ["KeepsLoss", "Parametrized"])
def test_a_module_that_cannot_be_saved_as_a_whole_is_saved_as_its_state(
    worlds: Worlds, tmp_path: Path, module: str
) -> None:
    done = worlds.run(2, attempt, spec_of(Row(group="", what="", module=module)), tmp_path)[0]

    assert "model.pt holds its state_dict" in done.said
    saved = torch.load(tmp_path / "model.pt")
    torch.testing.assert_close(saved, dict(done.state))
    assert done.weights_sha256 == weights_sha256(saved)


def test_volumes_of_different_shapes_are_validated_one_by_one(worlds: Worlds, tmp_path: Path) -> None:
    row = Row(group="", what="", data="Volumes")
    expected = as_lightning(row)
    for workers in (1, 2):
        spec = spec_of(row, eval_batch_size=1)
        done = worlds.run(workers, attempt, spec, tmp_path / str(workers))[0]

        assert list(done.series("val_loss").values()) == pytest.approx(expected.logged["val_loss"])


def test_what_is_computed_from_shares_is_said_in_the_log(worlds: Worlds, tmp_path: Path) -> None:
    spec = spec_of(Row(group="", what="", module="GathersByHand"))
    two = worlds.run(2, attempt, spec, tmp_path / "2")[0]
    one = worlds.run(1, attempt, spec, tmp_path / "1")[0]

    assert two.said.count("logged 'val_mean' with another value on each worker") == 1
    assert two.said.count("the module's buffers centre differ between the workers") == 1
    assert "logged 'val_same'" not in two.said
    assert "worker" not in one.said.replace("on 1 worker", "")


def test_a_data_set_that_is_divided_by_rank_is_refused(worlds: Worlds, tmp_path: Path) -> None:
    spec = spec_of(Row(group="", what="", data="DividedByRank"))
    with pytest.raises(RankError, match=r"data set has \[7, 6\] samples on the workers; give every worker"):
        worlds.run(2, attempt, spec, tmp_path)
