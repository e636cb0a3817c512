from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_reduce

from benchmarks.sync_bn.communication import CountCalls, Traffic, our_payload, ours_sent, torch_sent
from benchmarks.sync_bn.figure import draw
from benchmarks.sync_bn.pools import RanksOf


def test_a_ring_sends_almost_twice_what_it_adds_up() -> None:
    payload, sent = our_payload(2048), ours_sent(2048, 256)

    assert payload == Traffic(32_776, 32_768)
    assert sent == Traffic(2 * 255 / 256 * 32_776, 2 * 255 / 256 * 32_768)


def test_gathering_grows_with_the_ranks() -> None:
    assert torch_sent(2048, 256).forward == 255 * 4 * 4097
    assert torch_sent(2048, 2).backward == 4 * 4096


def calls_in_a_rank(_rank: int) -> tuple[list[str], int]:
    group = dist.group.WORLD
    assert group is not None
    with CountCalls() as count:
        dist.all_reduce(torch.zeros(3, dtype=torch.float64))
        all_reduce(torch.zeros(5), "sum", group) + 1
        dist.broadcast(torch.zeros(2), src=0)
    names, payload = count.calls()
    return list(names), payload


def test_calls_are_counted_by_whichever_interface_they_come(ranks_of: RanksOf) -> None:
    names, payload = ranks_of(2).run(calls_in_a_rank)[0]

    assert names == ["allreduce", "all_reduce", "broadcast"]
    assert payload == 3 * 8 + 5 * 4 + 2 * 4


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the figure is drawn with matplotlib")
    file = tmp_path / "images" / "figure.png"

    said = draw({"ours": {2: 10.0, 4: 20.0}, "theirs": {2: 10.0, 4: 40.0}}, 8, file)

    assert file.read_bytes().startswith(b"\x89PNG")
    assert said == "Figure: figure.png."
