"""What a person sees in a real terminal: tables that fit, one line a row."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.cli.references import short_ids
from service.cli.tables import Cut, shortened
from service.client import Client
from service.jobs.job import State, new_job, utc_now
from tests.service.cli import many_jobs
from tests.service.cli.command_line import Syncbn
from tests.service.cli.terminal import Running, cells, plain, seen
from tests.service.examples import make_spec
from tests.service.live_api import SPEC, Service
from training.protocol import Progress

SIZES = [(80, 24), (160, 40)]


def database(service: Service) -> str:
    return f"sqlite:///{service.storage.parent / 'queue.db'}"


def fill(service: Service, count: int) -> None:
    many_jobs.put(database(service), map(many_jobs.job, range(count)))


def too_wide(output: str, columns: int) -> list[str]:
    return [line for line in plain(output) if cells(line) > columns or not line.isprintable()]


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_tables_fit_and_have_one_line_a_row(
    service: Service, client: Client, columns: int, rows: int
) -> None:
    fill(service, 60)
    sweep = client.submit_sweep(
        {
            "spec": {**SPEC, "name": "日本語" * 30},
            "grid": {
                "training.seed": list(range(3)),
                "optimizer.class_path": ["torch.optim.SGD", "torch.optim.AdamW"],
                **{f"optimizer.init_args.{key}": [0.123456789] for key in ("lr", "weight_decay")},
            },
        }
    )
    client.create_key("ada." * 16, "read")
    client.add_webhook("http://127.0.0.1/" + "path/" * 40, labels={"team": "日本" * 30})
    client.set_secret("A_SECRET_" * 6, "long enough")
    waiting = [job.id for job in client.queue()]
    commands = {
        "list": 20 + 2,
        "list --all": 66 + 1,
        "list --state queued,running --name *": None,
        "queue": len(waiting) + 1,
        "cluster": 1 + 3 + 1,
        "sweeps": 2,
        "sweeps --limit 1": 2,
        f"show {sweep.id}": None,
        "keys list": 2,
        "webhooks list": 2,
        "secrets list": 2,
        "audit": None,
        "delete --state failed --dry-run": None,
    }
    outputs = seen(service.url, [command.split() for command in commands], columns=columns, rows=rows)
    shown = dict(zip(commands, outputs, strict=True))

    wide = {command: too_wide(output, columns) for command, output in shown.items()}
    assert {command: lines for command, lines in wide.items() if lines} == {}
    lines = {command: len(plain(output)) for command, output in shown.items()}
    assert {command: lines[command] for command, count in commands.items() if count} == {
        command: count for command, count in commands.items() if count
    }
    points = plain(shown[f"show {sweep.id}"])
    first = next(number for number, line in enumerate(points) if line.startswith("#"))
    assert [line.split()[0] for line in points[first + 1 :][:6]] == list("123456")


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_a_comparison_fits(service: Service, client: Client, columns: int, rows: int) -> None:
    for number in range(6):
        job = client.submit(
            {
                **SPEC,
                "name": many_jobs.NAMES[number] or "x",
                "labels": {"日本" * 20: f"{number} " * 30},
                "training": {"max_epochs": number + 1},
            }
        )
        service.train(service.start_job(job.id), 4)
        service.end_job(job.id, State.SUCCEEDED)

    commands = [["compare", "--since", "1d"], ["metrics", job.id], ["show", job.id], ["wait", job.id]]
    for output in seen(service.url, commands, columns=columns, rows=rows):
        assert too_wide(output, columns) == []
        assert len(plain(output)) >= 3


def known_jobs(service: Service) -> None:
    """Four jobs that are always the same but for their times."""
    now = utc_now()

    def job(seconds: int, name: str, state: State, reason: str = "", **changes: Any) -> Any:
        created = now - timedelta(seconds=seconds)
        return replace(
            new_job(make_spec(name=name), created_at=created), state=state, reason=reason, **changes
        )

    def ran(age: int, seconds: int | None, step: int) -> dict[str, Any]:
        start = now - timedelta(seconds=age)
        metrics = {"val_accuracy": 0.75, "train_loss": 0.5}
        progress = Progress(step=step, total_steps=400, epoch=1, eta_seconds=None, metrics=metrics)
        end = None if seconds is None else start + timedelta(seconds=seconds)
        return {"started_at": start, "finished_at": end, "attempt": 1, "workers": 2, "progress": progress}

    reason = "ValueError: the target has 11 classes and the model 10, so that the loss is not defined\nlog"
    many_jobs.put(
        database(service),
        [
            job(86_400 * 3, "fashion-resnet18", State.SUCCEEDED, **ran(86_400 * 3, 7_500, 400)),
            job(7_500, "digits-12", State.FAILED, reason, **ran(7_400, 65, 12)),
            job(600, "digits-13", State.RUNNING, **ran(595, None, 120)),
            job(
                6_030,
                "a-name-so-long-that-it-is-cut-in-its-middle-14",
                State.QUEUED,
                "needs 8 CPUs: 6 are free, when fashion-resnet18 ends there are 8",
            ),
        ],
    )


PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "terminal.md"
QUEUE_80 = """\
   ID            NAME            WAITING  REASON
1  <id>  a-name-…dle-14  100m     needs 8 CPUs: 6 are free, when fashio…
"""


def test_what_a_terminal_of_80_columns_shows(service: Service) -> None:
    known_jobs(service)

    shown, queue = seen(service.url, [["list"], ["queue"]])

    def known(lines: list[str]) -> str:
        return re.sub(r"j[0-9a-z]{11}\b", "<id>", "".join(f"{line}\n" for line in lines))

    documented = PAGE.read_text().partition("$ syncbn list\n")[2].partition("```")[0]
    assert known(plain(shown)) == known(documented.splitlines())
    assert known(plain(queue)) == QUEUE_80


def test_in_a_narrow_terminal_the_queue_still_says_why(service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    service.store.note_all([(service.store.get(job.id), "needs 8 GPUs: 6 are free, 2 jobs ahead")])

    (queue,) = seen(service.url, [["queue"]], columns=40)

    assert [line.rstrip() for line in plain(queue)] == [
        "ID            REASON",
        f"{job.id[:12]}  needs 8 GPUs: 6 are free,…",
    ]


def test_in_a_narrow_terminal_the_longest_jobs_still_have_their_durations(service: Service) -> None:
    known_jobs(service)

    (listed,) = seen(service.url, [["list", "--order", "longest"]], columns=40)

    header, first, second = plain(listed)
    assert "TOOK" in header.split()
    assert ["2h5m" in first.split(), "1m5s" in second.split()] == [True, True]


@pytest.mark.parametrize("columns", [40, 80])
def test_findings_of_doctor_fit(service: Service, tmp_path: Path, columns: int) -> None:
    (found,) = seen(
        service.url, [["doctor"]], columns=columns, SYNCBN_DATABASE_URL=f"sqlite:///{tmp_path / 'none.db'}"
    )

    assert too_wide(found, columns) == []
    assert "fault" in found


def test_a_wide_terminal_shows_dates_workers_times_and_metrics(service: Service) -> None:
    known_jobs(service)

    listed, queue = seen(service.url, [["list"], ["queue"]], columns=160, rows=40)

    header, running, waiting, failed, succeeded = plain(listed)
    assert header.split() == [
        *("ID", "NAME", "STATE", "PROGRESS", "AGE", "TOOK", "WORKERS", "METRIC", "CREATED", "REASON"),
    ]
    assert re.search(r" 400/400 +3d +2h5m +2 +val_accuracy 0.75 +\d{4}-\d\d-\d\d \d\d:\d\d$", succeeded)
    assert re.search(r" 12/400 +2h +1m5s +2 ", failed)
    assert plain(queue)[0].split() == ["ID", "NAME", "PRIORITY", "NEEDS", "WAITING", "SINCE", "REASON"]
    assert "1 worker, 1 CPU" in plain(queue)[1]
    assert [running.split()[1], waiting.split()[2]] == ["digits-13", "queued"]


def test_a_pipe_gets_every_column_and_whole_values(service: Service, syncbn: Syncbn) -> None:
    known_jobs(service)
    long = many_jobs.job(1, state=State.QUEUED, reason="because " * 500)
    many_jobs.put(database(service), [long])

    listed, queue = syncbn("list").stdout, syncbn("queue").stdout

    header = [*("ID", "NAME", "STATE", "PROGRESS", "AGE", "TOOK", "WORKERS", "METRIC", "CREATED", "USER")]
    assert listed.splitlines()[0].split() == [*header, "STARTS", "REASON"]
    assert all(len(line.split()[0]) == 21 for line in listed.splitlines()[1:])
    assert long.name in listed
    assert "so that the loss is not defined\n" in listed
    assert ("because " * 500).strip() in listed
    assert ("because " * 500).strip() in queue


def test_colours_go_where_they_are_not_wanted(service: Service) -> None:
    known_jobs(service)

    colour = seen(service.url, [["list"]])[0]
    without = seen(service.url, [["list"]], NO_COLOR="1")[0]
    dumb = seen(service.url, [["list"]], columns=60, TERM="dumb")[0]

    assert "\x1b[31mfailed" in colour
    assert "\x1b[31m" not in without
    assert [line.split()[:2] for line in plain(without)] == [line.split()[:2] for line in plain(colour)]
    assert "\x1b" not in dumb
    assert max(map(cells, dumb.splitlines())) <= 60


def test_ten_thousand_jobs_are_ten_thousand_lines(service: Service) -> None:
    fill(service, 10_000)

    output = seen(service.url, [["list", "--all"]])[0]

    assert too_wide(output, 80) == []
    lines = plain(output)
    assert len(lines) == 10_001
    ids = [line.split()[0] for line in lines[1:]]
    assert len(set(ids)) == 10_000


def test_each_event_is_one_line_that_fits(service: Service, client: Client) -> None:
    fill(service, 20)
    last = client.submit({**SPEC, "name": "the last"})

    with Running(service.url, "events", "--after", "0") as events:
        while last.id[:12] not in events.text or not events.text.endswith("\n"):
            assert events.read()
    lines = plain(events.text)

    assert len(lines) == 21
    assert [line for line in lines if cells(line) > 80 or not line.isprintable()] == []
    assert {line.split()[2] for line in lines} >= {last.id[:12]}


@pytest.mark.parametrize("cut", Cut)
@pytest.mark.parametrize("name", many_jobs.NAMES)
def test_a_text_is_cut_to_whole_characters(name: str, cut: Cut) -> None:
    name = "".join(char if char.isprintable() else " " for char in name)
    for width in range(1, 60):
        short = shortened(name, width, cut)
        assert cells(short) <= width
        assert short == name or "…" in short


def test_short_ids_are_told_apart() -> None:
    class Terminal:
        is_terminal = True

    ids = ["j1k0w1qk530wdg8e15q54", "j1k0w1qk530wdg9e15q54", "j1k0w1qk530wz000000000"[:21]]

    short = short_ids(ids, Terminal())  # type: ignore[arg-type]

    assert list(map(short, ids)) == ["j1k0w1qk530wdg8", "j1k0w1qk530wdg9", "j1k0w1qk530wz"]
