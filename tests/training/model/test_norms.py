from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sync_bn import Correction, SyncBatchNorm, convert_sync_batchnorm
from sync_bn.lightning import BatchRenormPlugin
from tests.training.worlds import Worlds
from training.errors import BuildError
from training.model.norms import apply_norm, layer_sync, process_group
from training.spec import Norm

REPLACED = (
    "ghost_batch_norm",
    "group_norm",
    "layer_norm",
    "instance_norm",
    "filter_response_norm",
    "evonorm_s0",
    "none",
)


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


@pytest.mark.parametrize("kind", REPLACED)
def test_a_layer_that_stands_in_several_places_stays_one_layer(kind: str) -> None:
    shared = nn.BatchNorm1d(8)
    model = apply_norm(
        nn.Sequential(shared, shared, nn.Sequential(shared)), Norm.model_validate({"kind": kind})
    )

    assert isinstance(model, nn.Sequential)
    assert isinstance(model[2], nn.Sequential)
    assert type(model[0]) is not nn.BatchNorm1d
    assert model[0] is model[1] is model[2][0]


class FusedActivation(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


@pytest.mark.parametrize("kind", ["sync_batch_norm", "keep", "batch_norm", "group_norm", "layer_norm"])
def test_a_fused_activation_is_refused_before_the_training_and_not_lost_after_it(kind: str) -> None:
    model = nn.Sequential(SyncBatchNorm(4), nn.Sequential(SyncBatchNorm(8, activation="relu")))

    with pytest.raises(BuildError, match=r"^model.class_path: layer '1\.0' has activation='relu'"):
        apply_norm(model, Norm.model_validate({"kind": kind}))


def parametrized() -> nn.Module:
    return parametrize.register_parametrization(nn.BatchNorm2d(8), "weight", nn.Softplus())


@pytest.mark.parametrize("kind", REPLACED)
@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        (FusedActivation(8), "FusedActivation, which has its own forward"),
        (nn.LazyBatchNorm2d(), "LazyBatchNorm2d, which does not know"),
        (parametrized(), "ParametrizedBatchNorm2d, whose parameters another module computes"),
    ],
)
def test_a_layer_that_cannot_be_replaced_without_loss_is_refused_by_name(
    layer: nn.Module, complaint: str, kind: str
) -> None:
    model = nn.Sequential(nn.Sequential(nn.BatchNorm2d(8), layer))

    with pytest.raises(BuildError, match=rf"^norm\.kind: layer '0\.1' is a {complaint}"):
        apply_norm(model, Norm.model_validate({"kind": kind}))


@pytest.mark.parametrize("kind", REPLACED)
def test_weights_of_the_model_with_batch_norm_load_and_nothing_is_drawn(kind: str) -> None:
    torch.manual_seed(0)
    model = network()
    weights, drawn = model.state_dict(), torch.rand(1)
    torch.manual_seed(0)
    replaced = apply_norm(network(), Norm.model_validate({"kind": kind}))
    assert torch.equal(torch.rand(1), drawn)

    missing, unexpected = replaced.load_state_dict(weights, strict=False)

    assert not [name for name in missing if not name.endswith((".tau", ".v"))]
    assert not [name for name in unexpected if "running" not in name and "tracked" not in name]


class Listed(nn.Module):
    """Refers to its layers by a list that is no nn.ModuleList, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(4)
        self.layers = [self.first]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("kind", REPLACED)
def test_a_layer_is_replaced_wherever_the_model_refers_to_it(kind: str) -> None:
    model = apply_norm(Listed(), Norm.model_validate({"kind": kind}))

    assert isinstance(model, Listed)
    assert type(model.first) is not nn.BatchNorm2d
    assert model.layers[0] is model.first
    assert type(apply_norm(nn.BatchNorm2d(4), Norm.model_validate({"kind": kind}))) is type(model.first)


@pytest.mark.parametrize("kind", REPLACED)
def test_hooks_and_modes_of_a_layer_stay(kind: str) -> None:
    layer = nn.BatchNorm2d(4).eval()
    seen: list[torch.Size] = []
    layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.shape))

    model = apply_norm(nn.Sequential(layer), Norm.model_validate({"kind": kind}))
    model(torch.randn(2, 4, 3, 3))

    assert seen == [(2, 4, 3, 3)]
    assert not model.get_submodule("0").training


def said_of(model: nn.Module, **norm: object) -> list[str]:
    said: list[str] = []
    apply_norm(model, Norm.model_validate(norm), said.append)
    return said


@pytest.mark.parametrize("kind", ["filter_response_norm", "evonorm_s0"])
def test_a_relu_gives_way_where_it_follows_directly_in_a_sequential_and_the_log_names_the_others(
    kind: str,
) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(4)
            self.relu = nn.ReLU()

    relu, shared = nn.ReLU(), nn.BatchNorm2d(4)
    model = nn.Sequential(
        *(nn.BatchNorm2d(4), relu, nn.Conv2d(4, 4, 1), relu),
        *(shared, nn.ReLU(), nn.Conv2d(4, 4, 1), shared),
        nn.Sequential(nn.BatchNorm2d(4), nn.GELU()),
        Functional(),
    )

    first, gone, others = said_of(model, kind=kind)

    kinds = [type(layer) for layer in model]
    assert kinds.count(nn.Identity) == 1
    assert kinds[1] is nn.Identity
    assert kinds[3] is kinds[5] is nn.ReLU
    assert first.startswith(f"norm.kind {kind}: 4 BatchNorm2d replaced by ")
    assert first.endswith(": 0, 4, 8.0, 9.bn")
    assert gone.endswith(" takes the place of the nn.ReLU after 0")
    assert " after 4, 8.0, 9.bn; " in others
    assert ("0.tau" in model.state_dict()) == (kind == "filter_response_norm")
    assert "4.tau" not in model.state_dict()


def test_the_log_says_how_many_layers_of_which_class_and_names_the_first() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm1d(4), *(nn.BatchNorm2d(4) for _ in range(10)))

    assert said_of(model, kind="layer_norm") == [
        "norm.kind layer_norm: 11 BatchNorm2d and 1 BatchNorm1d replaced by GroupNorm with one group, over "
        "all values of a sample: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    ]
    assert said_of(nn.Linear(1, 1), kind="none") == [
        "norm.kind none: the model has no BatchNorm layer to replace"
    ]


def test_convolutions_without_normalisation_after_them_are_not_standardised_and_named() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 1, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)),
    )

    _, chosen, left = said_of(model, kind="group_norm", weight_standardization=True)

    assert chosen == "norm.weight_standardization: 1 convolutions: 0"
    assert left.endswith(": 3, 5")


@pytest.mark.parametrize("kind", ["group_norm", "evonorm_s0"])
def test_groups_that_do_not_divide_the_channels_are_refused_before_any_change(kind: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(8), nn.Sequential(nn.BatchNorm2d(6)))

    with pytest.raises(BuildError, match=r"^norm.groups: 4 groups do not divide the 6 channels .* '1\.0'"):
        apply_norm(model, Norm.model_validate({"kind": kind, "groups": 4}))
    assert type(model[0]) is nn.BatchNorm2d


def test_a_layer_without_running_statistics_is_not_renormalised() -> None:
    model = nn.Sequential(nn.BatchNorm2d(8, track_running_stats=False))

    with pytest.raises(BuildError, match=r"^norm.kind: layer '0' has track_running_stats=False"):
        apply_norm(model, Norm(kind="batch_renorm"))


def test_steps_of_the_warm_up_are_those_of_the_optimizer(worlds: Worlds) -> None:
    norm = Norm(kind="batch_renorm", plain_steps=1, r_steps=3, d_steps=2)

    (correction,) = worlds.run(1, correction_of, norm, 4)

    assert correction == Correction(r_max=3, d_max=5, plain_steps=4, r_steps=12, d_steps=8)


def correction_of(_rank: int, norm: Norm, accumulate: int) -> Correction:
    plugin = layer_sync(norm, 0, accumulate)
    assert isinstance(plugin, BatchRenormPlugin)
    return plugin.correction


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
