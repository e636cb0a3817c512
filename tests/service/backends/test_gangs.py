"""From a placement to orders, and from what hosts know to the status of an attempt."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.backends.cluster import Phase, Status
from service.backends.gangs import (
    UNKNOWN_START,
    GangView,
    HostView,
    Lost,
    host_orders,
    nodes_of_ranks,
    status_of,
)
from training.protocol import Exit, ExitRecord, Order, Progress, StartStatus, cause

NOW = 1_000.0
ORDER = Order(attempt="job-1", spec={}, ranks=(), world_size=3, folder="/runs/job")


def told(*ranks: int, start: int = 1, **changes: Any) -> StartStatus:
    return StartStatus(attempt="job-1", start=start, ranks=ranks, **changes)


def at(step: int) -> Progress:
    return Progress(step=step, total_steps=10, epoch=0, eta_seconds=None)


def end(rank: int, kind: Exit = Exit.FINISHED, **changes: Any) -> ExitRecord:
    return ExitRecord(rank=rank, kind=kind, **changes)


def host(known: StartStatus | None = None, **changes: Any) -> HostView:
    return HostView(address="10.0.0.1", known=known, **changes)


def gang(**changes: Any) -> GangView:
    """Ranks 0 and 1 on a host, 2 on another one."""
    fields: dict[str, Any] = {"hosts": {"a": host(), "b": host()}, "nodes": {0: "a", 1: "a", 2: "b"}}
    return GangView(**fields | changes)


def hosts(a: HostView | StartStatus | None, b: HostView | StartStatus | None) -> dict[str, HostView]:
    return {
        node: view if isinstance(view, HostView) else host(view) for node, view in {"a": a, "b": b}.items()
    }


def status(**changes: Any) -> Status:
    return status_of(gang(**changes), NOW)


def kinds(found: Status) -> dict[int | None, Exit]:
    return {record.rank: record.kind for record in found.exits}


# Orders


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12))
def test_every_bundle_has_one_rank_and_those_of_a_node_follow_one_another(bundles: list[str]) -> None:
    gpus = [(str(bundle),) for bundle in range(len(bundles))]

    orders = host_orders(ORDER, bundles, gpus, "10.0.0.1:29500")

    assert list(orders) == list(dict.fromkeys(bundles))
    places = [place for order in orders.values() for place in order.ranks]
    assert [place.rank for place in places] == list(range(len(bundles)))
    assert sorted(place.gpus for place in places) == sorted(gpus)
    for node_rank, (node, order) in enumerate(orders.items()):
        assert [place.local_rank for place in order.ranks] == list(range(bundles.count(node)))
        assert {place.node_rank for place in order.ranks} == {node_rank}
        assert all(bundles[int(place.gpus[0])] == node for place in order.ranks)
        assert order.rendezvous == "10.0.0.1:29500"
        assert {place.rank for place in order.ranks} == {
            rank for rank, where in nodes_of_ranks(bundles).items() if where == node
        }


def test_all_of_an_order_but_its_ranks_is_the_same_for_every_host() -> None:
    orders = host_orders(ORDER, ["a", "b", "a"], [(), (), ()], "10.0.0.1:29500")

    assert {order.attempt for order in orders.values()} == {"job-1"}
    assert [place.rank for place in orders["a"].ranks] == [0, 1]
    assert [place.rank for place in orders["b"].ranks] == [2]


# A launch of this scheduler


def test_a_launch_whose_hosts_install_requirements_says_which_does() -> None:
    ready, slow = told(0, 1, installing="on a", prepared=True), told(2, installing="on b")

    found = status(launched=1, message="", hosts=hosts(ready, slow))
    assert (found.phase, found.message) == (Phase.INSTALLING, "on b")
    ready_all = status(launched=1, message="", hosts=hosts(ready, told(2, installing="x", prepared=True)))
    assert ready_all.phase is Phase.STARTING
    failed = told(0, 1, exits=(end(0, Exit.ERROR), end(1, Exit.ERROR)))
    assert kinds(status(launched=1, message="", hosts=hosts(failed, slow)))[0] is Exit.ERROR
    # Its scheduler died meanwhile: the start is launched again.
    assert status(hosts=hosts(ready, slow)) == Status(phase=Phase.STARTING, start=0)


def test_a_launch_that_no_host_knows_of_is_placed() -> None:
    assert status(launched=1, message="waits") == Status(phase=Phase.PLACING, start=1, message="waits")


def test_of_the_last_start_nothing_is_told_while_the_next_one_is_launched() -> None:
    ended = hosts(told(0, 1, exits=(end(0), end(1))), told(2, exits=(end(2),)))

    assert status(launched=2, message="", hosts=ended) == Status(phase=Phase.PLACING, start=2)


def test_a_launch_that_some_hosts_know_of_starts() -> None:
    found = status(launched=2, message="", hosts=hosts(told(0, 1, start=2), told(2)))

    assert (found.phase, found.start) == (Phase.STARTING, 2)


def test_a_launch_that_was_given_up_before_any_order_has_ended() -> None:
    found = status(launched=1, cancelled=True, world_size=3, nodes={})

    assert (found.phase, found.start) == (Phase.ENDED, 1)
    assert kinds(found) == dict.fromkeys(range(3), Exit.ENDED)
    assert cause(found.exits) is None


def test_a_launch_that_was_given_up_has_ended_when_what_was_started_has() -> None:
    going = status(launched=1, cancelled=True, world_size=3, hosts=hosts(told(0, 1), None))
    ended = told(0, 1, exits=(end(0, Exit.ENDED), end(1, Exit.ENDED)))
    over = status(launched=1, cancelled=True, world_size=3, hosts=hosts(ended, None))

    assert going.phase is Phase.STARTING
    assert over.phase is Phase.ENDED
    assert kinds(over) == dict.fromkeys(range(3), Exit.ENDED)


# What runs


def test_an_attempt_runs_when_all_ranks_of_all_hosts_have_joined() -> None:
    half = status(hosts=hosts(told(0, 1, joined=True, progress=at(3)), told(2)))
    whole = status(hosts=hosts(told(0, 1, joined=True, progress=at(3)), told(2, joined=True)))

    assert half.phase is Phase.STARTING
    assert whole == Status(phase=Phase.RUNNING, start=1, progress=at(3))


def test_an_attempt_has_ended_when_every_rank_has() -> None:
    first = told(0, 1, joined=True, exits=(end(1), end(0)))

    going = status(hosts=hosts(first, told(2, joined=True)))
    over = status(hosts=hosts(first, told(2, joined=True, exits=(end(2),))))

    assert going.phase is Phase.RUNNING
    assert kinds(going) == {0: Exit.FINISHED, 1: Exit.FINISHED}
    assert over.phase is Phase.ENDED
    assert [record.rank for record in over.exits] == [0, 1, 2]


def test_ranks_are_lost_with_their_machine_and_what_they_had_told_is_kept() -> None:
    before = told(0, 1, joined=True, progress=at(7), exits=(end(1, Exit.ERROR, type="ValueError"),))
    gone = host(lost=Lost(why="the machine 10.0.0.1 is gone", when=900.0, before=before))

    found = status(launched=1, hosts=hosts(gone, told(2, joined=True)))

    assert found.phase is Phase.RUNNING
    assert kinds(found) == {0: Exit.LOST, 1: Exit.ERROR}
    lost = found.exits[0]
    assert (lost.step, lost.when, lost.message) == (7, 900.0, "the machine 10.0.0.1 is gone")
    assert found.progress == at(7)


def test_ranks_that_had_ended_before_their_host_was_lost_are_not_lost() -> None:
    before = told(0, 1, joined=True, exits=(end(0), end(1)))
    gone = host(lost=Lost(why="gone", when=900.0, before=before))

    found = status(launched=1, hosts=hosts(gone, told(2, joined=True, exits=(end(2),))))

    assert found.phase is Phase.ENDED
    assert kinds(found) == dict.fromkeys(range(3), Exit.FINISHED)


@pytest.mark.parametrize("nodes", [{0: "a", 1: "a", 2: "b"}, {}])
def test_of_ranks_that_have_joined_one_that_nobody_knows_is_lost(nodes: dict[int, str]) -> None:
    """A new scheduler sees it so: the agent was started again, or Ray has placed the gang anew."""
    found = status(hosts=hosts(told(0, 1, joined=True), None), nodes=nodes, world_size=3)

    assert kinds(found) == {2: Exit.LOST}


# What an earlier scheduler has left


def test_a_placement_alone_is_there_to_be_launched_in() -> None:
    assert status() == Status(phase=Phase.ENDED, start=0)


def test_before_a_host_has_answered_nobody_may_launch_over_what_may_run_there() -> None:
    found = status(hosts=hosts(None, host(answers=False)))

    assert (found.phase, found.start) == (Phase.RUNNING, UNKNOWN_START)
    assert "10.0.0.1" in found.message


def test_one_host_that_tells_of_the_attempt_is_enough_while_another_one_is_silent() -> None:
    found = status(hosts=hosts(told(0, 1, joined=True, progress=at(2)), host(answers=False)))

    assert found == Status(phase=Phase.RUNNING, start=1, progress=at(2))


def test_a_start_that_was_launched_by_halves_is_to_be_ended_and_launched_again() -> None:
    going = status(hosts=hosts(told(0, 1, start=2), told(2, exits=(end(2, Exit.SIGNAL),))))
    over = status(hosts=hosts(told(0, 1, start=2, exits=(end(0), end(1))), None))

    assert going == Status(phase=Phase.STARTING, start=1)
    assert over == Status(phase=Phase.ENDED, start=1)


def test_ranks_whose_placement_somebody_has_removed_still_count() -> None:
    found = status(hosts={"a": host(told(0, 1, joined=True, exits=(end(0), end(1))))}, nodes={})

    assert found.phase is Phase.ENDED
    assert kinds(found) == {0: Exit.FINISHED, 1: Exit.FINISHED}
