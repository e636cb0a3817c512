from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sync_bn import SyncBatchNorm, convert_sync_batchnorm
from tests.training.worlds import Worlds
from training.errors import BuildError
from training.model.norms import apply_norm, process_group
from training.spec import Norm


def network(width: int = 64) -> nn.Sequential:
    block = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width, eps=1e-3))
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), block, nn.BatchNorm2d(2, affine=False)
    )


def group_norms(model: nn.Module) -> list[nn.GroupNorm]:
    return [layer for layer in model.modules() if isinstance(layer, nn.GroupNorm)]


@pytest.mark.parametrize("kind", ["sync_batch_norm", "keep"])
def test_a_model_that_keeps_its_layers_is_left_alone(kind: str) -> None:
    model = network()
    before = [type(layer) for layer in model.modules()]

    assert apply_norm(model, Norm.model_validate({"kind": kind})) is model
    assert [type(layer) for layer in model.modules()] == before


def test_batch_norm_takes_synchronized_layers_back() -> None:
    model = apply_norm(convert_sync_batchnorm(network()), Norm(kind="batch_norm"))

    assert not any(isinstance(layer, SyncBatchNorm) for layer in model.modules())
    assert sum(type(layer) is nn.BatchNorm2d for layer in model.modules()) == 3


@pytest.mark.parametrize("kind", ["group_norm", "layer_norm"])
def test_every_batch_norm_is_replaced_by_a_layer_with_its_parameters(kind: str) -> None:
    model = network()
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]

    new = group_norms(apply_norm(model, Norm.model_validate({"kind": kind})))

    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert [layer.weight for layer in new] == weights
    assert [layer.eps for layer in new] == [1e-5, 1e-3, 1e-5]
    assert [layer.num_groups for layer in new] == ([32, 32, 1] if kind == "group_norm" else [1, 1, 1])


@pytest.mark.parametrize("kind", ["group_norm", "layer_norm"])
def test_torchs_own_synchronized_layer_is_replaced_too(kind: str) -> None:
    model = apply_norm(nn.SyncBatchNorm(8), Norm.model_validate({"kind": kind}))
    assert isinstance(model, nn.GroupNorm)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (2, 1), (3, 1), (12, 2), (32, 16), (48, 8), (64, 32), (96, 16), (512, 32)],
)
def test_groups_are_at_most_32_and_of_two_channels_or_more(channels: int, groups: int) -> None:
    layer = apply_norm(nn.BatchNorm1d(channels), Norm(kind="group_norm"))

    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == groups


def test_group_norm_behind_a_linear_layer_passes_the_signal_on() -> None:
    layer = apply_norm(nn.BatchNorm1d(32), Norm(kind="group_norm"))

    assert layer(torch.randn(8, 32)).std() > 0.5


def test_layer_norm_normalises_each_sample_over_all_its_values() -> None:
    layer = apply_norm(nn.BatchNorm2d(6), Norm(kind="layer_norm"))
    x = 3 + 5 * torch.randn(4, 6, 5, 5)

    torch.testing.assert_close(layer(x), nn.functional.layer_norm(x, x.shape[1:]))


@pytest.mark.parametrize("kind", ["group_norm", "layer_norm"])
def test_a_layer_that_stands_in_several_places_stays_one_layer(kind: str) -> None:
    shared = nn.BatchNorm1d(8)
    model = apply_norm(
        nn.Sequential(shared, shared, nn.Sequential(shared)), Norm.model_validate({"kind": kind})
    )

    assert isinstance(model, nn.Sequential)
    assert isinstance(model[2], nn.Sequential)
    assert isinstance(model[0], nn.GroupNorm)
    assert model[0] is model[1] is model[2][0]


class FusedActivation(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


@pytest.mark.parametrize("kind", ["sync_batch_norm", "keep", "batch_norm", "group_norm", "layer_norm"])
def test_a_fused_activation_is_refused_before_the_training_and_not_lost_after_it(kind: str) -> None:
    model = nn.Sequential(SyncBatchNorm(4), nn.Sequential(SyncBatchNorm(8, activation="relu")))

    with pytest.raises(BuildError, match=r"^model.class_path: layer '1\.0' has activation='relu'"):
        apply_norm(model, Norm.model_validate({"kind": kind}))


@pytest.mark.parametrize("kind", ["group_norm", "layer_norm"])
@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        (FusedActivation(8), "FusedActivation, which has its own forward"),
        (nn.LazyBatchNorm2d(), "LazyBatchNorm2d, which does not know"),
    ],
)
def test_a_layer_that_cannot_be_replaced_without_loss_is_refused_by_name(
    layer: nn.Module, complaint: str, kind: str
) -> None:
    model = nn.Sequential(nn.Sequential(nn.BatchNorm2d(8), layer))

    with pytest.raises(BuildError, match=rf"^norm\.kind: layer '0\.1' is a {complaint}"):
        apply_norm(model, Norm.model_validate({"kind": kind}))


def members(rank: int, norm: Norm, nodes: list[int]) -> list[int]:
    """Returns the ranks in this rank's group."""
    seen = torch.zeros(dist.get_world_size())
    seen[rank] = 1
    dist.all_reduce(seen, group=process_group(norm, nodes[rank]))
    return [other for other, present in enumerate(seen.tolist()) if present]


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("world", [[0, 1, 2, 3]] * 4),
        ("node", [[0, 2, 3], [1], [0, 2, 3], [0, 2, 3]]),
        (1, [[0], [1], [2], [3]]),
        (2, [[0, 1], [0, 1], [2, 3], [2, 3]]),
        (4, [[0, 1, 2, 3]] * 4),
    ],
)
def test_statistics_are_shared_in_the_group_that_the_spec_says(
    worlds: Worlds, group: str | int, expected: list[list[int]]
) -> None:
    norm = Norm.model_validate({"group": group})

    assert worlds.run(4, members, norm, [0, 1, 0, 0]) == expected


def refusal(_rank: int, norm: Norm) -> str:
    with pytest.raises(BuildError) as caught:
        process_group(norm, 0)
    return str(caught.value)


def test_workers_that_cannot_be_cut_into_groups_are_refused_on_every_rank(worlds: Worlds) -> None:
    for message in worlds.run(3, refusal, Norm(group=2)):
        assert message.startswith(
            "norm.group: 3 ranks cannot be cut into groups of 2; take a number that divides 3"
        )
