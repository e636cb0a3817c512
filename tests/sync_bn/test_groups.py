"""Which ranks share statistics, as a layer shows it: each rank's batch is its number, so the mean tells."""

from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sync_bn import SyncBatchNorm, convert_sync_batchnorm, process_group_of
from tests.sync_bn.conftest import RanksOf


class Host(NamedTuple):
    name: str
    boot_id: str | None = "one"


def mean_of_numbers(group: dist.ProcessGroup | None) -> float:
    layer = convert_sync_batchnorm(nn.BatchNorm1d(1, momentum=1.0), group)
    assert isinstance(layer, SyncBatchNorm)
    layer(torch.full((2, 1), float(dist.get_rank())))
    assert layer.running_mean is not None
    return round(layer.running_mean.item(), 3)


def mean_in_group(_rank: int, size: Any) -> tuple[float, bool]:
    group = process_group_of(size)
    return mean_of_numbers(group), group is None


@pytest.mark.parametrize(
    ("size", "means"),
    [
        ("world", [1.5, 1.5, 1.5, 1.5]),
        (4, [1.5, 1.5, 1.5, 1.5]),
        (2, [0.5, 0.5, 2.5, 2.5]),
        (1, [0, 1, 2, 3]),
    ],
)
def test_as_many_ranks_as_said_share_their_statistics(
    ranks_of: RanksOf, size: Any, means: list[float]
) -> None:
    is_the_world = size in ("world", 4)

    assert ranks_of(4).run(mean_in_group, size) == [(mean, is_the_world) for mean in means]


def mean_on_host(rank: int, hosts: list[Host]) -> tuple[float, bool]:
    with (
        patch("socket.gethostname", return_value=hosts[rank].name),
        patch.object(Path, "exists", return_value=hosts[rank].boot_id is not None),
        patch.object(Path, "read_text", side_effect=[hosts[rank].boot_id or FileNotFoundError]),
        # What torchrun says about its own processes is no proof: several of them may run on one host.
        patch.dict("os.environ", LOCAL_WORLD_SIZE="1", GROUP_RANK=str(rank)),
    ):
        group = process_group_of("node")
    return mean_of_numbers(group), group is None


@pytest.mark.parametrize(
    ("hosts", "means"),
    [
        ([Host("a"), Host("b"), Host("a"), Host("b")], [1, 2, 1, 2]),
        ([Host("a"), Host("b"), Host("a"), Host("a")], [1.667, 1, 1.667, 1.667]),
        # Hosts that were never given a name.
        ([Host("localhost", "one"), *[Host("localhost", "two")] * 3], [0, 2, 2, 2]),
        # Systems other than Linux.
        ([Host("a", None), Host("a", None), Host("b", None), Host("b", None)], [0.5, 0.5, 2.5, 2.5]),
    ],
)
def test_ranks_on_one_host_find_each_other(ranks_of: RanksOf, hosts: list[Host], means: list[float]) -> None:
    assert ranks_of(4).run(mean_on_host, hosts) == [(mean, False) for mean in means]


def test_all_ranks_of_this_test_are_on_one_host(ranks_of: RanksOf) -> None:
    assert ranks_of(2).run(mean_in_group, "node") == [(0.5, True)] * 2


def mean_on_node(rank: int, nodes: list[int | str]) -> float:
    return mean_of_numbers(process_group_of("node", node=nodes[rank]))


@pytest.mark.parametrize("nodes", [[7, 0, 7, 7], ["x", "y", "x", "x"], [1, "1", 1, 1]])
def test_who_knows_the_nodes_better_than_the_host_names_is_believed(
    ranks_of: RanksOf, nodes: list[int | str]
) -> None:
    assert ranks_of(4).run(mean_on_node, nodes) == [1.667, 1, 1.667, 1.667]


def refusal(_rank: int, size: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the test looks at the whole message
        process_group_of(size)
    return str(caught.value)


def test_ranks_that_cannot_be_cut_into_groups_are_refused_on_every_rank(ranks_of: RanksOf) -> None:
    for size in (3, 8):
        for message in ranks_of(4).run(refusal, size):
            assert message == (
                f"4 ranks cannot be cut into groups of {size}; "
                "take a number that divides 4 (1, 2, 4), 'node' or 'world'"
            )


@pytest.mark.parametrize("size", [0, -2, True, 2.0, "host", None])
def test_what_is_no_size_is_refused(size: Any) -> None:
    assert refusal(0, size) == f"size is {size!r}; expected 'world', 'node' or a number of ranks ≥ 1"


@pytest.mark.parametrize("size", ["node", 1])
def test_groups_can_only_be_made_of_ranks_that_have_met(size: Any) -> None:
    assert "init_process_group" in refusal(0, size)
    assert process_group_of("world") is None
