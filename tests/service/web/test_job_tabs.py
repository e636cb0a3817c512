"""The tabs of a job for its spec, its attempts and its files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from service.client.local_token import token_file
from service.jobs.job import Job, Removed, State
from service.queue.tables import jobs
from service.web.job_spec import defaults, differences, spec_text
from service.web.rank_ends import of_attempt
from tests.service.examples import make_spec
from tests.service.live_api import Service
from tests.service.saved import save_checkpoints
from tests.service.web.conftest import NARROW, WIDE, Console
from training.hangs.rank_files import HangReport, Position, RankFiles
from training.hangs.stack_traces import Frame
from training.protocol import Exit, ExitRecord, Failure, exit_file
from training.run_dir import RunFolder
from training.spec import load_yaml, parse_spec

HOSTILE = "<img src=x onerror=alert(1)>"
BROKEN_OUT = '"><script>alert(1)</script>'


def resize(console: Console, size: tuple[int, int]) -> None:
    console.page.set_viewport_size({"width": size[0], "height": size[1]})


def get(service: Service, path: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token_file(service.server.port).read_text()}"}
    return httpx.get(f"{service.url}/{path}", headers=headers, trust_env=False, timeout=60)


# Spec


def test_only_what_differs_is_listed_and_each_side_says_what_it_lacks() -> None:
    first = make_spec(optimizer={"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}}, priority=2)
    second = make_spec(resources={"workers": {"min": 1, "max": 2}}, labels={"a.b": "1"})
    here, there = (each.model_dump(mode="json") for each in (first, second))

    rows = {row.key: (row.here, row.there) for row in differences(here, there)}

    assert rows == {
        "optimizer.class_path": ("torch.optim.Adam", None),
        "optimizer.init_args.lr": ("0.001", None),
        "priority": ("2", "0"),
        "resources.workers": ("1", None),
        "resources.workers.min": (None, "1"),
        "resources.workers.max": (None, "2"),
        "labels.a.b": (None, "'1'"),
    }
    assert list(differences(here, here)) == []
    changed = {row.key for row in differences(here, defaults(here))}
    assert changed == {
        "name",
        "model.class_path",
        "data.class_path",
        "optimizer.class_path",
        "optimizer.init_args.lr",
        "priority",
    }
    script = parse_spec({"script": {"path": "a.py", "args": ["x"]}}).model_dump(mode="json")
    assert {row.key for row in differences(script, defaults(script))} == {
        "name",
        "script.path",
        "script.args",
    }


def test_the_text_is_the_spec_also_if_it_is_very_long() -> None:
    spec = make_spec(model={"class_path": "a.B", "init_args": {"names": ["x" * 50] * 3_000}})
    for each in (spec, make_spec()):
        whole = each.model_dump(mode="json")
        assert load_yaml(spec_text(whole)) == whole


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_the_spec_is_copied_and_compared_with_another_job(console: Console, size: tuple[int, int]) -> None:
    store = console.service.store
    earlier, _ = store.create_job(make_spec(name="net", training={"global_batch_size": 32}))
    store.create_job(make_spec(name="other"))
    spec = make_spec(name="net", labels={HOSTILE: BROKEN_OUT}, training={"global_batch_size": 64})
    job, _ = store.create_job(spec)
    resize(console, size)
    page = console.open(f"/jobs/{job.id}/spec")

    text = page.inner_text("#spec-text")
    assert load_yaml(text) == job.spec
    assert HOSTILE in page.inner_text(".diff")
    console.check_fits()
    console.check_accessible()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("text=Copy")
    page.wait_for_selector(".notice:has-text('Copied')")
    assert load_yaml(page.evaluate("navigator.clipboard.readText()")) == job.spec

    page.click("text=Previous of this name")
    page.wait_for_selector(f"h2 a[href$='{earlier.id}/spec']")
    expect(page.locator(".diff tbody th")).to_have_text(["training.global_batch_size", f"labels.{HOSTILE}"])
    expect(page.locator(".diff tbody tr").nth(1)).to_contain_text("not in that job")
    page.fill("#with", BROKEN_OUT)
    page.click("button:has-text('Compare')")
    page.wait_for_selector(f"#with-problem:has-text({json.dumps(BROKEN_OUT)})")
    page.fill("#with", "other")
    page.press("#with", "Enter")
    page.wait_for_selector(".diff th:has-text('other')")
    console.check_fits()


# Attempts


def position(rank: int, step: int = 7) -> Position:
    return Position(
        rank=rank,
        world_size=2,
        host="node-1",
        pid=100 + rank,
        thread=1,
        step=step,
        doing=f"backward {HOSTILE}",
        collectives=None,
        limit=10.0,
    )


def hang(service: Service, job: Job) -> None:
    """Two ranks report where they are stuck."""
    folder = RunFolder(path=service.storage / job.id, attempt=1, start=1).hang
    folder.mkdir(parents=True)
    stack = [Frame("/code/net.py", 12, "forward", "while True: pass"), Frame("/x.py", 1, BROKEN_OUT, "")]
    for rank in range(2):
        report = HangReport(position=position(rank), seconds=61.0, stack=stack, threads={HOSTILE: stack})
        RankFiles(folder).report(report)


def write_end(service: Service, job: Job, record: ExitRecord, *, start: int = 1) -> None:
    path = exit_file(service.storage / job.id, 1, start, record.rank or 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record.to_json()))


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_the_attempts_say_how_each_rank_ended_and_are_live(console: Console, size: tuple[int, int]) -> None:
    service = console.service
    job, _ = service.store.create_job(make_spec(name="net"))
    resize(console, size)
    page = console.open(f"/jobs/{job.id}/attempts")
    page.wait_for_selector("#job-attempts >> text=The job has not started yet")

    service.start_job(job.id)
    page.wait_for_selector("#attempt-1 >> text=still runs")
    hang(service, job)
    write_end(service, job, ExitRecord(rank=0, kind=Exit.HUNG, step=7, message="no progress", when=1e9))
    running = service.store.get(job.id)
    assert service.store.restart(
        running,
        reason="rank 0 hung (hang); starting again",
        failures=1,
        failures_in_row=1,
        last_failure=Failure(kind="hung", type="", code=None, step=7),
        restarts=("rank 0 hung",),
        ran_seconds=1.0,
    )
    page.wait_for_selector("#start-1-stack-1:has-text('no progress for 61 s at step 7')")
    assert HOSTILE in page.inner_text("#start-1-stack-1 summary >> nth=0")
    assert BROKEN_OUT in page.inner_text("#start-1-stack-1 pre >> nth=0")
    assert "while True: pass" in page.inner_text("#start-1-stack-0")
    page.wait_for_selector(".timeline >> text=start 2 of attempt 1")

    failure = ExitRecord(
        rank=1, kind=Exit.ERROR, step=9, type="ValueError", message=HOSTILE, trace=BROKEN_OUT, log_tail="last"
    )
    write_end(service, job, failure, start=2)
    write_end(service, job, ExitRecord(rank=0, kind=Exit.ENDED, step=9), start=2)
    error = {"kind": "user_error", "type": "ValueError", "message": HOSTILE, "rank": 1, "step": 9}
    service.end_job(job.id, State.FAILED, {**error, "log_tail": BROKEN_OUT})
    page.wait_for_selector("#attempt-1 >> text=failed")
    assert "the cause" in page.inner_text("#start-2-rank-1 summary")
    assert "the cause" not in page.inner_text("#start-2-rank-0 summary")
    assert "user_error" in page.inner_text("#job-error")
    assert HOSTILE in page.inner_text("#job-error .message")
    page.click("#start-2-rank-1 > summary")
    page.click("#start-2-rank-1 >> text=Traceback")
    assert BROKEN_OUT in page.inner_text("#start-2-rank-1")
    assert page.locator(".timeline li").count() == 5
    console.check_fits()
    console.check_accessible()
    assert (
        page.locator("#start-2-rank-1 a").get_attribute("href")
        == f"../../jobs/{job.id}/logs?attempt=1&rank=1"
    )


def test_moments_are_those_of_the_readers_time_zone(console: Console) -> None:
    page = console.page
    zone = {"timezoneId": "Asia/Tokyo"}
    page.context.new_cdp_session(page).send("Emulation.setTimezoneOverride", zone)
    job, _ = console.service.store.create_job(make_spec())
    console.open(f"/jobs/{job.id}/attempts")

    moment = page.locator(".timeline li time")
    expect(moment).to_have_attribute("title", re.compile(r" UTC$"))

    there = moment.evaluate("it => new Date(it.dateTime).toLocaleString([], { timeZone: 'Asia/Tokyo' })")
    assert moment.inner_text() == there


def test_what_is_unfolded_stays_so_when_the_page_is_brought_up_to_date(console: Console) -> None:
    service = console.service
    job, _ = service.store.create_job(make_spec())
    service.start_job(job.id)
    write_end(service, job, ExitRecord(rank=0, kind=Exit.ERROR, step=9, type="ValueError", message="first"))
    page = console.open(f"/jobs/{job.id}/attempts")
    page.click("#start-1-rank-0 > summary")

    service.end_job(job.id, State.FAILED, {"kind": "error", "type": "ValueError", "message": "first"})

    expect(page.locator("#attempt-1")).to_contain_text("failed")
    assert page.locator("#start-1-rank-0").evaluate("details => details.open")


def test_what_a_job_writes_in_place_of_records_does_no_harm(tmp_path: Path, service: Service) -> None:
    job = replace(service.store.create_job(make_spec())[0], attempt=1, start=1)
    folder = exit_file(service.storage / job.id, 1, 1, 0).parent
    folder.mkdir(parents=True)
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps(ExitRecord(rank=5, kind=Exit.ERROR, message="secret").to_json()))
    (folder / "start-1-rank-5.json").symlink_to(secret)
    whole = ExitRecord(rank=0, kind=Exit.FINISHED, step=3).to_json()
    for rank, text in enumerate(
        [
            json.dumps(whole),
            "{",
            "[]",
            json.dumps({**whole, "kind": "nonsense"}),
            json.dumps({**whole, "message": {"a": 1}}),
        ]
    ):
        (folder / f"start-1-rank-{rank}.json").write_text(text)
    hung = RunFolder(path=service.storage / job.id, attempt=1, start=1).hang
    hung.mkdir(parents=True)
    (hung / "rank-0.json").write_text('{"position": 1}')
    (hung / "rank-1.position").write_bytes(position(1).record() + b"Thread 0x01:\n  File /a")

    starts, problem = of_attempt(str(service.storage), job, 1, 1)

    assert problem == ""
    assert [end.record.rank for end in starts[0].ends] == [0]
    assert [stack.rank for stack in starts[0].stacks] == [1]
    assert "did not report" in starts[0].stacks[0].where


def test_attempts_and_records_that_are_gone_are_said_to_be(service: Service) -> None:
    job, _ = service.store.create_job(make_spec())
    service.start_job(job.id)
    assert "No rank has ended yet" in get(service, f"jobs/{job.id}/attempts").text
    service.end_job(job.id, State.SUCCEEDED)
    assert "left no records" in get(service, f"jobs/{job.id}/attempts?attempt=7").text
    assert service.store._update([jobs.c.id == job.id], {"removed": int(Removed.LOGS)})
    assert "Retention has removed the records" in get(service, f"jobs/{job.id}/attempts").text


# Files


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_the_files_are_listed_and_downloaded(console: Console, size: tuple[int, int]) -> None:
    service = console.service
    job, _ = service.store.create_job(make_spec(name="net", code=None))
    run = service.start_job(job.id)
    folder = RunFolder(path=service.storage / job.id)
    save_checkpoints(folder.path, {10: 0.5, 20: 0.25, 30: 0.75})
    folder.files.mkdir(parents=True)
    (folder.files / f"a{HOSTILE.replace('/', '')}#?.csv").write_text("1,2\n")
    resize(console, size)
    page = console.open(f"/jobs/{job.id}/files")

    assert "best" in page.inner_text("#checkpoint-20")
    assert "last" in page.inner_text("#checkpoint-30")
    assert "0.25" in page.inner_text("#checkpoint-20")
    place = page.locator("#checkpoint-20 a").bounding_box()
    assert place is not None
    assert place["x"] + place["width"] < size[0]  # without scrolling the table sideways
    console.check_fits()
    console.check_accessible()
    with page.expect_download() as download:
        page.click("#checkpoint-20 a")
    assert download.value.suggested_filename == f"{job.id}-step-20.ckpt"
    with page.expect_download() as download:
        page.click("text=#?.csv")
    assert download.value.path().read_text() == "1,2\n"
    link = page.locator("section[aria-labelledby=artifacts-title] a")
    assert link.get_attribute("href") == f"{service.results.url(run)}/artifacts"


def test_what_is_not_there_is_said(service: Service) -> None:
    job, _ = service.store.create_job(make_spec())
    page = get(service, f"jobs/{job.id}/files").text
    for text in (
        "No checkpoint has been saved yet",
        "has written no files",
        "no run in MLflow",
        "No code was",
    ):
        assert text in page
    script, _ = service.store.create_job(parse_spec({"script": {"path": "a.py"}}))
    service.start_job(script.id)
    page = get(service, f"jobs/{script.id}/files").text
    assert "runs a script" in page
    assert "The files cannot be read" in page
    service.end_job(job.id, State.CANCELLED)
    assert service.store._update([jobs.c.id == job.id], {"removed": int(Removed.CHECKPOINTS)})
    page = get(service, f"jobs/{job.id}/files").text
    assert "Retention has removed the checkpoints of this job" in page


def test_checkpoints_and_files_appear_while_the_page_is_open(console: Console) -> None:
    service = console.service
    job, _ = service.store.create_job(make_spec())
    service.start_job(job.id)
    folder = RunFolder(path=service.storage / job.id)
    folder.path.mkdir(parents=True)
    page = console.open(f"/jobs/{job.id}/files")
    page.wait_for_selector("text=No checkpoint has been saved yet.")

    save_checkpoints(folder.path, {10: 0.5})
    folder.files.mkdir(parents=True, exist_ok=True)
    (folder.files / "table.csv").write_text("1,2\n")

    page.wait_for_selector("#checkpoint-10")
    link = page.get_by_role("link", name="table.csv")
    with page.expect_download() as download:
        link.click()
    assert download.value.path().read_text() == "1,2\n"
    console.check_accessible()
