"""What of a job's memory is beside its ranks."""

from __future__ import annotations

from benchmarks.head import beside_ranks
from benchmarks.processes import Seen

FORKED = "multiprocessing.forkserver training.host.warm"


def test_what_a_supervisor_shares_with_the_fork_server_does_not_count() -> None:
    agent = Seen(pid=1, parent=0, command="ray::RayHostAgent", uss=60, pss=65)
    alone = Seen(pid=2, parent=1, command=FORKED, uss=400, pss=410)
    shared = Seen(pid=2, parent=1, command=FORKED, uss=10, pss=140)
    supervisor = Seen(pid=3, parent=2, command=FORKED, uss=4, pss=130)
    rank = Seen(pid=4, parent=3, command=FORKED, uss=100, pss=230)

    assert beside_ranks([agent, alone]) == 65
    assert beside_ranks([agent, shared, supervisor, rank]) == 69


def test_of_a_peer_all_but_its_workers_counts() -> None:
    driver = Seen(pid=1, parent=0, command="ray_ddp.py", uss=200, pss=240)
    worker = Seen(pid=2, parent=0, command="ray::RayTrainWorker", uss=300, pss=400)

    assert beside_ranks([driver, worker]) == 240
