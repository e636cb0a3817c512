"""Jobs and sweeps by id, by the beginning of an id, and by name, wherever a command takes one."""

from __future__ import annotations

import json

import pytest

from service.client import Client
from service.jobs.job import State
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import SPEC, Service


@pytest.mark.parametrize("length", [21, 16, None])
def test_every_command_takes_the_beginning_of_an_id_and_a_name(
    syncbn: Syncbn, service: Service, client: Client, length: int | None
) -> None:
    resources = {"workers": {"min": 1, "max": 2}}
    made = client.submit({**SPEC, "name": "se ven", "resources": resources})
    reference = made.name if length is None else made.id[:length]

    assert json.loads(syncbn("priority", reference, "3", "--json").stdout)[0]["priority"] == 3
    assert json.loads(syncbn("show", reference, "--json").stdout)["id"] == made.id
    assert json.loads(syncbn("pause", reference, "--json").stdout)[0]["state"] == "paused"
    assert json.loads(syncbn("resume", reference, "--json").stdout)[0]["state"] == "queued"
    service.train(service.start_job(made.id, workers=1), 4)
    service.print(made.id, "hello\n")
    for command in ("logs", "metrics", "checkpoints", "files"):
        assert syncbn(command, reference).exit_code == 0, command
    assert "hello" in syncbn("logs", reference).stdout
    assert syncbn("resize", reference, "2").exit_code == 0
    service.end_job(made.id, State.FAILED)
    assert "failed" in syncbn("events", reference).stdout
    assert syncbn("wait", reference).exit_code == 1
    clone = json.loads(syncbn("clone", reference, "--set", "name=other", "--json").stdout)
    assert clone["spec"]["model"] == made.spec["model"]
    extended = syncbn("extend", reference, "--set", "training.max_epochs=9")
    assert made.id in extended.stderr  # it is named in the refusal: it has no checkpoint
    assert syncbn("retry", reference).exit_code == 0
    assert syncbn("cancel", reference).exit_code == 0
    assert syncbn("delete", reference, "--yes").stdout == "deleted 1 job; their files go soon\n"


def test_a_sweep_is_found_in_the_same_ways(syncbn: Syncbn, client: Client) -> None:
    sweep = client.submit_sweep({"spec": {**SPEC, "name": "point"}, "name": "rates", "repeat": 2})

    for reference in (sweep.id, sweep.id[:16], "rates"):
        assert json.loads(syncbn("show", reference, "--json").stdout)["id"] == sweep.id
        assert len(json.loads(syncbn("list", "--sweep", reference, "--json").stdout)) == 2
    assert syncbn("report", "nothing").exit_code == 4
    assert json.loads(syncbn("cancel", "rates", "--json").stdout)[0]["state"] == "cancelled"


def test_what_may_mean_several_jobs_is_refused_with_their_list(syncbn: Syncbn, client: Client) -> None:
    first, second = client.submit({**SPEC, "name": "same"}), client.submit({**SPEC, "name": "same"})
    alone = client.submit({**SPEC, "name": "digits-7"})

    for reference in ("same", "j", "s?me"):
        refused = syncbn("cancel", reference)
        assert refused.exit_code == 2
        assert first.id in refused.stderr
        assert second.id in refused.stderr
        assert "queued" in refused.stderr
    assert {job.state for job in client.jobs()} == {"queued"}
    assert json.loads(syncbn("show", "digits-*", "--json").stdout)["id"] == alone.id
    # A name that is the beginning of another job's id is that of two jobs.
    beginning = first.id[:20]
    client.submit({**SPEC, "name": beginning})
    assert syncbn("show", beginning).exit_code == 2
    document = json.loads(syncbn("show", "same", "--json").stderr)
    assert (document["status"], document["title"]) == (409, "Ambiguous")


@pytest.mark.parametrize("command", [("cancel",), ("show",), ("delete", "--yes"), ("logs",), ("report",)])
def test_nothing_means_no_job_even_if_there_is_only_one(
    syncbn: Syncbn, client: Client, command: tuple[str, ...]
) -> None:
    client.submit(SPEC)
    client.submit_sweep({"spec": SPEC, "repeat": 1})

    assert syncbn(*command, "").exit_code == 4
    assert syncbn("list", "--sweep", "").exit_code == 4
    assert syncbn("list", "--state", "").exit_code == 2
    assert json.loads(syncbn("list", "--name", "", "--json").stdout) == []
    assert {job.state for job in client.jobs()} == {"queued"}


def test_an_id_is_not_looked_up_first(syncbn: Syncbn, service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    service.requests.clear()

    syncbn("show", job.id, "--json")

    assert [path for _, path, _ in service.requests] == [f"/v1/jobs/{job.id}"]


def test_lists_take_patterns_several_states_and_ages(syncbn: Syncbn, client: Client) -> None:
    names = ["digits-1", "digits-2", "fashion"]
    made = {name: client.submit({**SPEC, "name": name}) for name in names}
    client.cancel(made["digits-2"].id)
    client.pause(made["fashion"].id)

    def listed(*options: str) -> list[str]:
        return [job["name"] for job in json.loads(syncbn("list", *options, "--json").stdout)]

    assert listed("--name", "digits-*") == ["digits-2", "digits-1"]
    assert listed("--state", "cancelled,paused") == ["fashion", "digits-2"]
    assert listed("--state", "cancelled, paused", "--state", "queued", "--since", "10m") == names[::-1]
    assert listed("--since", "2999-01-01") == []
    assert listed("--name", "digits-*", "--state", "queued") == ["digits-1"]
