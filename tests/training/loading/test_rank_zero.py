from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from tests.training.worlds import Worlds
from training.errors import BuildError, RankZeroFailed, is_lost_peer
from training.loading.rank_zero import Scatter, from_rank_zero


class Unpicklable:
    def __reduce__(self) -> str:
        raise TypeError("not to be sent")


def make(kind: str) -> list[Any]:
    assert dist.get_rank() == 0
    if kind == "build error":
        raise BuildError("data", "no samples")
    if kind == "error":
        raise KeyError("key")
    if kind == "exit":
        raise SystemExit(3)
    big = torch.arange(1_000_000)
    values: dict[str, list[Any]] = {
        "numbers": [1, 2, 3],
        "unpicklable": [1, 2, Unpicklable()],
        "views": [big[:2], big[2:4].view(2, 1), big[::2][3]],
        "others": [None, torch.ones(2, dtype=torch.bfloat16), torch.ones(2, requires_grad=True)],
    }
    return values[kind]


def received(_rank: int, kind: str, *, scattered: bool) -> Any:
    try:
        value = Scatter()(lambda: make(kind)) if scattered else from_rank_zero(lambda: make(kind))
    except (BuildError, RankZeroFailed, KeyError, TypeError, SystemExit) as error:
        dist.barrier()  # nobody waits elsewhere
        return type(error).__name__, is_lost_peer(error)
    return value if scattered else [value[index] for index in range(3)]


def test_each_rank_gets_its_part(worlds: Worlds) -> None:
    assert worlds.run(3, received, "numbers", scattered=True) == [1, 2, 3]
    first, second, third = worlds.run(3, received, "views", scattered=True)
    assert (first.tolist(), second.tolist(), third.item()) == ([0, 1], [[2], [3]], 6)
    assert second.untyped_storage().nbytes() == 16
    nothing, half, learned = worlds.run(3, received, "others", scattered=True)
    assert nothing is None
    assert half.dtype == torch.bfloat16
    assert learned.requires_grad


def test_all_ranks_get_what_rank_0_made(worlds: Worlds) -> None:
    assert worlds.run(3, received, "numbers", scattered=False) == [[1, 2, 3]] * 3


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize(
    ("kind", "own", "of_others"),
    [
        ("build error", ("BuildError", False), ("BuildError", False)),
        ("error", ("KeyError", False), ("RankZeroFailed", True)),
        ("unpicklable", ("TypeError", False), ("RankZeroFailed", True)),
        ("exit", ("SystemExit", False), ("RankZeroFailed", True)),
    ],
)
def test_an_error_of_rank_0_reaches_all_ranks(
    worlds: Worlds, scattered: bool, kind: str, own: Any, of_others: Any
) -> None:
    assert worlds.run(3, received, kind, scattered=scattered) == [own, of_others, of_others]


def scattered_beside_nccl(_rank: int) -> Any:
    with patch.object(dist, "get_backend", return_value="nccl"):
        scatter = Scatter()
    return scatter(lambda: make("numbers"))


def test_parts_have_a_group_of_their_own_if_the_default_one_is_for_gpus(worlds: Worlds) -> None:
    assert worlds.run(3, scattered_beside_nccl) == [1, 2, 3]


def test_without_a_process_group_the_value_is_the_own_one() -> None:
    assert from_rank_zero(lambda: 3) == 3
    assert Scatter()(lambda: [4]) == 4
