from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from sync_bn import SyncBatchNorm
from sync_bn.diagnostics import MEASURES, Observation
from tests.training.fitting import (
    CLASSES,
    FEATURES,
    LENGTH,
    Recorder,
    fit,
    make_spec,
    own_lightning,
    samples,
    small,
)
from tests.training.worlds import Worlds
from training.callbacks.norm_report import COLUMNS, FIGURE, NormReport, Overview, norm_report
from training.host import local
from training.model.supervised import Supervised
from training.spec import Norm
from training.tracking.tracker import NullTracker

EPS = 1e-5
NOISE = {"mean_noise", "var_noise"}
COUNTS = {"dead", "exploding"}


class Ahead(nn.Module):
    """Two layers directly on the data; the second has no running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.tracked = nn.BatchNorm1d(FEATURES)
        self.untracked = nn.BatchNorm1d(FEATURES, track_running_stats=False)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head((self.tracked(x) + self.untracked(x)).mean(2))
        return output


def data() -> TensorDataset:
    """22 samples with one almost constant channel and one that explodes."""
    x, y = samples(22, 1).tensors
    x[:, 1] = 1e-4 * (x[:, 1] - 100)
    x[:, 2] *= 1e3
    return TensorDataset(x, y)


def without_norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(FEATURES * LENGTH, CLASSES))


def observed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name.startswith("norm/")}


def root_mean_square(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def by_hand(batches: list[Tensor], mine: int) -> dict[str, float]:
    """Returns the measures of the last batch, whose first `mine` samples are this rank's share."""
    running_mean, running_var = torch.zeros(FEATURES).double(), torch.ones(FEATURES).double()
    for x in batches[:-1]:
        running_mean = 0.9 * running_mean + 0.1 * x.mean((0, 2))
        running_var = 0.9 * running_var + 0.1 * x.var((0, 2))
    x = batches[-1]
    (var, mean), (my_var, my_mean) = (torch.var_mean(part, (0, 2), correction=0) for part in (x, x[:mine]))
    std = (var + EPS).sqrt()
    return {
        "mean_noise": root_mean_square((my_mean - mean) / std),
        "var_noise": root_mean_square((my_var - var) / std**2),
        "mean_drift": root_mean_square((running_mean - mean) / std),
        "var_drift": root_mean_square((running_var - x.var((0, 2))) / std**2),
        "dead": 1.0,
        "exploding": 1.0,
    }


def test_every_nth_step_is_logged_as_its_data_say(worlds: Worlds, tmp_path: Path) -> None:
    spec = make_spec(observe_every=3, max_epochs=1)

    of_0, of_1 = worlds.run(2, fit, spec, Ahead, train=data(), shuffle=False, folder=tmp_path)

    expected = by_hand([data().tensors[0][at : at + 7] for at in (0, 7, 14)], mine=4)
    names = [("tracked", measure) for measure in MEASURES]
    names += [("untracked", measure) for measure in MEASURES if measure in NOISE | COUNTS]
    found = observed(of_0.history)
    assert found.keys() == {f"norm/{layer}/{measure}" for layer, measure in names}
    for layer, measure in names:
        ((step, value),) = found[f"norm/{layer}/{measure}"]
        assert step == 3
        assert value == pytest.approx(expected[measure], rel=1e-5), measure
    assert observed(of_1.history) == {}
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [observed(row).keys() for row in rows] == [set(), set(), found.keys(), set()]
    assert (tmp_path / FIGURE).read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("make_model", "layers"), [(small, ["bn", "bn2"]), (own_lightning, ["body.bn", "body.bn2"])]
)
def test_layers_are_named_as_in_the_users_model_and_steps_counted_over_epochs(
    worlds: Worlds, tmp_path: Path, make_model: Callable[[], nn.Module], layers: list[str]
) -> None:
    (fitted,) = worlds.run(1, fit, make_spec(observe_every=3), make_model, folder=tmp_path)

    found = observed(fitted.history)
    assert found.keys() == {f"norm/{layer}/{measure}" for layer in layers for measure in MEASURES}
    assert [step for step, _ in found[f"norm/{layers[0]}/mean_drift"]] == [3, 6, 9, 12]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["epoch"]) for row in rows if observed(row)] == [(3, 0), (6, 1), (9, 2), (12, 2)]
    assert observed(rows[-1]) == {name: points[-1][1] for name, points in found.items()}


def test_the_last_batch_of_a_step_counts(worlds: Worlds) -> None:
    spec = make_spec(observe_every=2, max_epochs=1)

    of_0, _ = worlds.run(2, fit, spec, Ahead, train=data(), shuffle=False, batches_per_step=2)

    expected = by_hand([data().tensors[0][at : at + 7] for at in (0, 7, 14, 21)], mine=1)
    ((step, value),) = of_0.history["norm/tracked/mean_drift"]
    assert step == 2
    assert value == pytest.approx(expected["mean_drift"], rel=1e-5)


def test_an_attempt_that_resumes_goes_on_with_its_steps(worlds: Worlds, tmp_path: Path) -> None:
    fits = [
        worlds.run(1, fit, make_spec(observe_every=3, max_epochs=epochs), folder=tmp_path, resume=epochs > 1)
        for epochs in (1, 3)
    ]

    steps = [[step for step, _ in fitted.history["norm/bn/dead"]] for (fitted,) in fits]
    assert steps == [[3], [6, 9, 12]]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if observed(row)] == [3, 6, 9, 12]


def test_observing_changes_nothing_that_is_learned(worlds: Worlds) -> None:
    (plain, _), (of_0, of_1) = (
        worlds.run(2, fit, make_spec(observe_every=every, max_epochs=1)) for every in (None, 1)
    )

    for watched in (of_0, of_1):
        assert all(torch.equal(watched.state[name], value) for name, value in plain.state.items())
    assert {n: p for n, p in of_0.history.items() if n not in observed(of_0.history)} == plain.history


def test_a_model_without_batch_norm_is_trained_all_the_same(worlds: Worlds, tmp_path: Path) -> None:
    (fitted,) = worlds.run(1, fit, make_spec(observe_every=1, max_epochs=1), without_norm, folder=tmp_path)

    assert len(fitted.history["train_loss"]) == 4
    assert observed(fitted.history) == {}
    assert not (tmp_path / FIGURE).exists()


def test_nobody_observes_by_default_nor_on_another_rank_than_the_first(tmp_path: Path) -> None:
    tracker = NullTracker()
    asked = Norm(observe_every=5)

    assert not isinstance(norm_report(Norm(), 0, tracker), NormReport)
    assert not isinstance(norm_report(asked, 1, tracker), NormReport)
    assert isinstance(norm_report(asked, 0, tracker), NormReport)
    assert norm_report(Norm(), 0, tracker).draw(tmp_path) == []


def test_the_figure_of_an_earlier_run_is_no_result_of_the_next() -> None:
    assert FIGURE in local.RESULTS


class Net(LightningModule):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


def trainer_at(step: int) -> Any:
    return SimpleNamespace(global_step=step, current_epoch=0, lightning_module=None)


class Drive:
    """Calls the hooks as Lightning does."""

    def __init__(self, *, every: int, at: int = 0, in_module: Callable[[nn.Module], LightningModule] = Net):
        self.layer = SyncBatchNorm(2)
        self.tracker = Recorder()
        self.report = NormReport(self.tracker, every)
        self.trainer = trainer_at(at)
        self.report.on_train_start(self.trainer, in_module(self.layer))

    def begin(self) -> None:
        self.report.on_train_batch_start(self.trainer)
        self.layer(torch.randn(4, 2))

    def end(self, steps: int = 1) -> None:
        self.trainer.global_step += steps
        self.report.on_train_batch_end(self.trainer)

    @property
    def is_observing(self) -> bool:
        return "_observer" in vars(self.layer)

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.tracker.found.get("norm/layer/dead", [])]


def test_a_step_is_read_when_the_next_batch_has_come_to_its_backward() -> None:
    drive = Drive(every=1)
    drive.begin()
    drive.end()
    drive.begin()
    assert drive.steps == []

    drive.report.on_before_backward()

    assert drive.steps == [1]


def test_the_last_step_of_an_epoch_and_one_before_a_batch_without_backward_are_read_too() -> None:
    drive = Drive(every=1)
    for _ in range(2):
        drive.begin()
        drive.end()
    assert drive.steps == [1]

    drive.report.on_train_epoch_end()

    assert drive.steps == [1, 2]


def test_of_several_calls_of_a_layer_in_a_step_the_last_counts() -> None:
    drive = Drive(every=1)
    drive.begin()
    drive.layer(1e6 * torch.randn(4, 2))
    drive.end()
    drive.report.on_train_epoch_end()

    assert drive.tracker.found["norm/layer/exploding"] == [(1, 2.0)]


def test_batches_of_several_steps_are_observed_as_soon_as_a_step_is_due() -> None:
    drive = Drive(every=3, at=4)
    for _ in range(5):
        drive.begin()
        drive.end(steps=2)
    drive.report.on_train_epoch_end()

    assert drive.steps == [8, 10, 14]


def test_layers_are_left_alone_between_observed_steps_and_after_a_batch_that_was_skipped() -> None:
    drive = Drive(every=2)
    seen = []
    for _ in range(4):
        drive.begin()
        seen.append(drive.is_observing)
        drive.begin()  # the batch before has not ended
        drive.end()
        assert not drive.is_observing

    assert seen == [False, True, False, True]


def test_an_error_loses_no_step_before_it_and_is_not_hidden_by_another() -> None:
    drive = Drive(every=1)
    drive.begin()
    drive.end()
    drive.begin()

    drive.report.on_exception()

    assert drive.steps == [1]
    assert not drive.is_observing
    drive.begin()
    drive.end()
    drive.report.tracker = SimpleNamespace(log=lambda *_: 1 / 0)
    drive.report.on_exception()


def test_a_model_that_is_a_layer_itself_has_a_name() -> None:
    drive = Drive(every=1, in_module=lambda layer: Supervised(layer, make_spec()))
    drive.begin()
    drive.end()
    drive.report.on_train_epoch_end()

    assert drive.tracker.found.keys() == {f"norm/model/{measure}" for measure in MEASURES}


def test_the_log_says_why_there_is_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = Drive(every=1, in_module=lambda _: Net(nn.Linear(2, 2)))
    assert "nothing to observe, because the model has no BatchNorm" in capsys.readouterr().out
    empty.begin()
    empty.end()
    assert empty.report.draw(tmp_path) == []
    assert capsys.readouterr().out == ""

    frozen = Drive(every=1)
    frozen.layer.eval()
    frozen.begin()
    frozen.end()
    frozen.report.on_train_epoch_end()
    assert frozen.report.draw(tmp_path) == []
    assert "no step of this attempt was observed" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_figure_says_which_steps_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = Drive(every=5, at=12)
    for _ in range(10):
        drive.begin()
        drive.end()
    drive.report.on_train_epoch_end()
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_args, **_options: figures.append(figure))

    assert drive.report.draw(tmp_path) == [tmp_path / FIGURE]

    (figure,) = figures
    assert figure.get_suptitle() == "Rank 0, steps 15 to 20, as this attempt saw them"


def observation(layer: str, step: int, **measures: float) -> Observation:
    values: dict[str, Any] = dict.fromkeys(MEASURES, float(step)) | measures
    return Observation(layer=layer, step=0, **values)


def test_the_overview_of_a_long_training_is_bounded_and_evenly_spread() -> None:
    overview = Overview({SyncBatchNorm(2): "a", SyncBatchNorm(2): "b"})
    for step in range(20, 20 * (5 * COLUMNS + 2), 20):
        overview.add(step, {"a": observation("a", step)} if step == 20 else {"b": observation("b", step)})
        assert len(overview.steps) <= COLUMNS

    values, steps = overview.heat_map("var_noise")

    assert len(steps) > COLUMNS / 2
    assert steps == list(range(20, steps[-1] + 1, 20 * 8))
    assert values[1, 1:].tolist() == steps[1:]
    assert values[0, 0] == 20
    assert values[0, 1:].isnan().all()
    assert values[1, 0].isnan()


@pytest.mark.parametrize("value", [0.5, 0.0, math.nan, math.inf])
def test_a_figure_is_drawn_whatever_the_values(value: float, tmp_path: Path) -> None:
    overview = Overview({SyncBatchNorm(2): "a"})
    for step in (1, 2, 3):
        overview.add(step, {"a": observation("a", step, mean_noise=value, mean_drift=value)})

    figure = overview.figure()
    figure.savefig(tmp_path / FIGURE)

    panels = [axes for axes in figure.axes if axes.get_xlabel() == "step"]
    meshes = [mesh for axes in panels for mesh in axes.collections if isinstance(mesh, QuadMesh)]
    arrays = [mesh.get_array() for mesh in meshes]
    assert [array.shape for array in arrays if array is not None] == [(1, 3), (1, 3)]
