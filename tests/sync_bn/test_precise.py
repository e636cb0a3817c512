import pytest
import torch
from torch import Tensor, nn

from sync_bn import SyncBatchNorm, convert_sync_batchnorm, observe, precise_bn
from tests.sync_bn.conftest import RanksOf


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2), nn.BatchNorm1d(2))
    model.double()(torch.randn(5, 3, dtype=torch.float64) + 7)  # statistics that are not to be kept
    return model


def statistics(rank: int, batches: list[list[Tensor]]) -> dict[str, Tensor]:
    model = convert_sync_batchnorm(network())
    state: dict[str, Tensor] = precise_bn(model, batches[rank]).state_dict()
    return state


def test_statistics_are_those_of_all_data_with_the_same_bits_on_every_rank(ranks_of: RanksOf) -> None:
    torch.manual_seed(1)
    batches = [[torch.randn(n, 3, dtype=torch.float64) * 2 + 1 for n in sizes] for sizes in ([4, 3], [2, 5])]

    first, second = ranks_of(2).run(statistics, batches)

    everything = torch.cat([batch for of_rank in batches for batch in of_rank])
    torch.testing.assert_close(first["0.running_mean"], everything.mean(0))
    torch.testing.assert_close(first["0.running_var"], everything.var(0))
    for name, value in first.items():
        assert torch.equal(value, second[name])
    assert first["0.num_batches_tracked"] == 1


def test_later_layers_see_inputs_that_are_normalised_by_global_batches_without_dropout(
    ranks_of: RanksOf,
) -> None:
    torch.manual_seed(1)
    batches = [[torch.randn(n, 3, dtype=torch.float64) for n in sizes] for sizes in ([4, 3], [2, 5])]

    state, _ = ranks_of(2).run(statistics, batches)

    model = network().eval()
    assert isinstance(model, nn.Sequential)
    seen = []
    for step in range(2):
        x = torch.cat([of_rank[step] for of_rank in batches])
        seen.append(model[2](model[0].train()(x)))
    expected = torch.cat(seen).detach()
    torch.testing.assert_close(state["3.running_mean"], expected.mean(0))
    torch.testing.assert_close(state["3.running_var"], expected.var(0))


def error_and_statistics(rank: int, batches: list[list[Tensor]]) -> tuple[str, bool]:
    model = convert_sync_batchnorm(network())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        precise_bn(model, batches[rank])
    except ValueError as error:
        message = str(error)
    else:
        message = "no error"
    return message, all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_rank_without_any_batch_is_an_error_on_every_rank(ranks_of: RanksOf) -> None:
    batches: list[list[Tensor]] = [[torch.randn(4, 3, dtype=torch.float64)], []]

    for message, unchanged in ranks_of(2).run(error_and_statistics, batches):
        assert "A rank has no batch at all" in message
        assert unchanged


def test_in_one_process_tuples_and_a_forward_of_ones_own_are_understood_and_flags_stay() -> None:
    torch.manual_seed(1)
    x = torch.randn(12, 3, dtype=torch.float64)
    model = convert_sync_batchnorm(network())
    model[3].eval()  # type: ignore[index]
    flags = [module.training for module in model.modules()]

    precise_bn(model, [(x[:5], "target"), (x[5:], "target")])

    first = model[0]  # type: ignore[index]
    assert isinstance(first, SyncBatchNorm)
    torch.testing.assert_close(first.running_mean, x.mean(0))
    assert [module.training for module in model.modules()] == flags
    precise_bn(model, [{"image": x[:5]}], forward=lambda m, batch: m(batch["image"]))
    torch.testing.assert_close(first.running_mean, x[:5].mean(0))


def test_an_error_on_the_way_leaves_everything_as_it_was() -> None:
    model = convert_sync_batchnorm(network())
    before = {name: value.clone() for name, value in model.state_dict().items()}

    with pytest.raises(ValueError, match="expected"):
        precise_bn(model, [torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)])

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all("_observer" not in vars(module) for module in model.modules())


def test_model_with_nothing_to_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no SyncBatchNorm with running statistics"):
        precise_bn(network(), [])
    model = convert_sync_batchnorm(network())
    with observe(model), pytest.raises(ValueError, match="or it is observed"):
        precise_bn(model, [])
