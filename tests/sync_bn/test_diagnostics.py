import copy
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sync_bn import SyncBatchNorm, convert_sync_batchnorm, observe
from sync_bn.diagnostics import MEASURES, Observation
from tests.sync_bn.conftest import RanksOf

EPS = 1e-5


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))


def observed_steps(rank: int, parts: list[list[Tensor]]) -> tuple[list[Observation], list[int]]:
    """The observations of as many steps as there are batches, and the number of all-reduces in each."""
    model = convert_sync_batchnorm(network())
    calls = []
    with observe(model) as report, patch.object(dist, "all_reduce", wraps=dist.all_reduce) as all_reduce:
        for batch in parts:
            all_reduce.reset_mock()
            torch.autograd.backward(model(batch[rank]).sum())
            calls.append(all_reduce.call_count)
    return report.observations(), calls


def root_mean_square(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_noise_is_how_far_this_ranks_statistics_lie_from_those_of_all(ranks_of: RanksOf) -> None:
    torch.manual_seed(1)
    parts = [[torch.randn(2, 3, 4, 4) + 1, 2 * torch.randn(3, 3, 4, 4)] for _ in range(2)]

    results = ranks_of(2).run(observed_steps, parts)

    for rank, (observations, calls) in enumerate(results):
        assert calls == [4, 4]  # two layers, each way: observing adds none
        assert [(o.layer, o.step) for o in observations] == [("0", 0), ("2", 0), ("0", 1), ("2", 1)]
        running_mean, running_var = torch.zeros(3).double(), torch.ones(3).double()
        for o, batch in zip(observations[::2], parts, strict=True):
            mine, all_values = batch[rank].double(), torch.cat(batch).double()
            (var, mean), (my_var, my_mean) = (
                torch.var_mean(x, (0, 2, 3), correction=0) for x in (all_values, mine)
            )
            unbiased = all_values.var((0, 2, 3))
            assert o.mean_noise == pytest.approx(
                root_mean_square((my_mean - mean) / (var + EPS).sqrt()), 1e-4
            )
            assert o.var_noise == pytest.approx(root_mean_square((my_var - var) / (var + EPS)), 1e-4)
            assert o.mean_drift == pytest.approx(
                root_mean_square((running_mean - mean) / (var + EPS).sqrt()), 1e-4
            )
            assert o.var_drift == pytest.approx(
                root_mean_square((running_var - unbiased) / (var + EPS)), 1e-4
            )
            assert (o.dead, o.exploding) == (0, 0)
            running_mean = running_mean.lerp(mean, 0.1)
            running_var = running_var.lerp(unbiased, 0.1)
        assert observations[1].mean_drift != observations[1].mean_drift  # NaN: no running statistics


def test_rank_without_samples_has_no_noise_and_the_same_drift(ranks_of: RanksOf) -> None:
    (of_full, _), (of_empty, _) = ranks_of(2).run(
        observed_steps, [[torch.randn(4, 3, 2, 2), torch.empty(0, 3, 2, 2)]]
    )

    assert of_full[0].mean_noise == pytest.approx(0, abs=1e-6)
    assert of_empty[0].mean_noise != of_empty[0].mean_noise
    assert of_empty[0].mean_drift == of_full[0].mean_drift


def test_dead_channels_are_counted_in_one_process_too() -> None:
    layer = SyncBatchNorm(4)
    x = torch.randn(8, 4)
    x[:, 0] = 5.0

    with observe(layer) as report:
        layer(x)

    (observation,) = report.observations()
    assert observation.dead == 1
    assert observation.layer == ""


def test_constant_channel_leaves_the_other_measures_finite() -> None:
    layer = SyncBatchNorm(2)

    with observe(layer) as report:
        layer(torch.tensor([[5.0, 1.0], [5.0, 2.0]]))

    (observation,) = report.observations()
    assert observation.dead == 1
    assert observation.var_noise == pytest.approx(0, abs=1e-6)
    assert 0 < observation.var_drift < float("inf")


def test_exploding_channels_are_counted() -> None:
    layer = SyncBatchNorm(3)
    x = torch.randn(8, 3)
    x[:, 1] *= 1e6
    x[0, 2] = torch.inf

    with observe(layer) as report:
        layer(x)

    (observation,) = report.observations()
    assert observation.exploding == 2


def test_nothing_stays_on_the_layers_and_results_are_the_same_observed_or_not() -> None:
    model, x = convert_sync_batchnorm(network()), torch.randn(4, 3, 2, 2)
    twin = copy.deepcopy(model)

    with observe(model):
        observed = model(x)

    torch.testing.assert_close(observed, twin(x))
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
    assert all("_observer" not in vars(module) for module in model.modules())


def test_evaluation_and_recomputation_are_not_observed() -> None:
    model, x = convert_sync_batchnorm(network()), torch.randn(4, 3, 2, 2, requires_grad=True)

    with observe(model) as report:
        torch.autograd.backward(checkpoint(model, x, use_reentrant=False).sum())
        model.eval()(x)

    assert len(report.observations()) == 2


def test_heat_map_has_a_row_for_each_layer_and_a_column_for_each_observed_step() -> None:
    model = convert_sync_batchnorm(network())

    with observe(model, every=2) as report:
        for step in range(1, 6):
            report.step = step
            model(torch.randn(4, 3, 2, 2))

    values, steps = report.heat_map("mean_drift")
    assert (report.layers, steps) == (["0", "2"], [2, 4])
    assert values[0].tolist() == [o.mean_drift for o in report.observations() if o.layer == "0"]
    assert values[1].isnan().all()
    with pytest.raises(ValueError, match="mean_noise, var_noise"):
        report.heat_map("nois")


def test_figure_shows_each_measure() -> None:
    pytest.importorskip("matplotlib", reason="a figure needs matplotlib, the package does not")
    model = convert_sync_batchnorm(network())
    with observe(model) as report:
        for _ in range(3):
            model(torch.randn(4, 3, 2, 2))

    figure = report.figure(MEASURES)

    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [measure.replace("_", " ") for measure in MEASURES]


def test_model_without_layers_an_observed_one_and_a_wrong_interval_are_refused() -> None:
    model = convert_sync_batchnorm(network())
    with pytest.raises(ValueError, match="convert it first"), observe(network()):
        pass
    with pytest.raises(ValueError, match="every=0"), observe(model, every=0):
        pass
    with observe(model), pytest.raises(ValueError, match="'0' is being observed"), observe(model):
        pass
