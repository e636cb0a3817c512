from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from service.cli import display
from service.cli.app import app
from service.client import Client
from service.jobs import State
from tests.service.live_api import SPEC, FaultyApp, Later, LiveServer, Service, live_service, timers
from training.spec import Spec

HEAVY = {"torch", "ray", "lightning", "mlflow", "fastapi", "sqlalchemy", "httpx", "pydantic"}
FAILURE = {
    "type": "ValueError",
    "message": "bad shape",
    "rank": 1,
    "log_tail": "Traceback\nValueError: bad shape\n",
}


class Result(Protocol):
    exit_code: int

    @property
    def stdout(self) -> str: ...

    @property
    def stderr(self) -> str: ...


Syncbn = Callable[..., Result]


@pytest.fixture(scope="module")
def live_server() -> Iterator[LiveServer[FaultyApp]]:
    """One server for all tests: starting and stopping it takes longer than most of them."""
    with LiveServer(FaultyApp()) as server:
        yield server


@pytest.fixture
def service(live_server: LiveServer[FaultyApp], tmp_path: Path) -> Iterator[Service]:
    with live_service(live_server, tmp_path) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, patience=10) as client:
        yield client


@pytest.fixture
def syncbn(service: Service) -> Syncbn:
    """Runs a command line against the service."""

    def run(*arguments: str, stdin: str = "", **environment: str) -> Result:
        env = {"SYNCBN_URL": service.url, "SYNCBN_API_KEY": None, **environment}
        return CliRunner().invoke(app, list(arguments), input=stdin, env=env)

    return run


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return str(path)


@pytest.fixture
def playing(service: Service) -> Iterator[Callable[..., None]]:
    """playing(job id, end) plays the job in a thread: it starts, trains four steps, and ends so."""
    threads: list[threading.Thread] = []

    def play(job_id: str, end: State, error: dict[str, Any] | None = None) -> None:
        run = service.start_job(job_id)
        service.print(job_id, "hello from the job\n")
        service.results.log(run, "test_accuracy", 4, 0.97)
        service.train(run, 4)
        service.wait_until_seen(job_id)
        service.end_job(job_id, end, error)

    def start(*arguments: Any) -> None:
        threads.append(threading.Thread(target=play, args=arguments))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


@pytest.fixture
def later() -> Iterator[Later]:
    with timers() as later:
        yield later


# Starting up


def test_help_lists_the_commands_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from service.cli import main; sys.argv = ['syncbn', '--help']\n"
        "try: main()\n"
        "finally: print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    for command in ("submit", "validate", "logs", "metrics", "train", "up"):
        assert f" {command} " in shown
    assert "130 interrupted" in shown
    assert not HEAVY & set(shown.rpartition("LOADED")[2].split())


def test_the_client_loads_no_server_and_no_training() -> None:
    code = "import sys, service.client; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert not (HEAVY - {"httpx", "pydantic"}) & set(loaded.split())


def test_help_does_not_show_the_key(syncbn: Syncbn) -> None:
    assert "hunter2" not in syncbn("--help", SYNCBN_API_KEY="hunter2").stdout


# Submitting


def test_submit_queues_a_job_and_says_how_to_watch_it(syncbn: Syncbn, client: Client, spec: str) -> None:
    result = syncbn("submit", spec)

    (job,) = client.jobs()
    assert result.exit_code == 0
    assert f"queued digits {job.id}" in result.stdout
    assert f"syncbn logs -f {job.id}" in result.stdout


def test_submit_json_is_the_job_and_nothing_else(syncbn: Syncbn, client: Client, spec: str) -> None:
    result = syncbn("submit", spec, "--json")

    (job,) = client.jobs()
    assert json.loads(result.stdout)["id"] == job.id
    assert result.stderr == ""


def test_submit_reads_stdin_and_applies_set(syncbn: Syncbn) -> None:
    result = syncbn(
        "submit", "-", "--set", "resources.workers=3", "--set", "name=other", "--json", stdin=json.dumps(SPEC)
    )

    job = json.loads(result.stdout)
    assert (job["name"], job["spec"]["resources"]["workers"]) == ("other", 3)


def test_submit_again_with_a_key_is_the_same_job(syncbn: Syncbn, spec: str) -> None:
    ids = {json.loads(syncbn("submit", spec, "--key", "k", "--json").stdout)["id"] for _ in range(2)}

    assert len(ids) == 1


def test_submit_uploads_code(syncbn: Syncbn, service: Service, tmp_path: Path, spec: str) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "my_models.py").write_text("class Net: ...\n")

    result = syncbn("submit", spec, "--code", str(code), "--set", "model.class_path=my_models.Net", "--json")

    assert result.exit_code == 0, result.stderr
    digest = json.loads(result.stdout)["spec"]["code"]
    assert service.store.has_code(digest)


def test_a_bad_spec_names_each_key_and_what_was_meant(syncbn: Syncbn, spec: str) -> None:
    result = syncbn("submit", spec, "--set", "trainin.seed=1", "--set", "resources.workers=many")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "error: The spec is not valid\n" in result.stderr
    assert "  trainin: unknown key; did you mean training?\n" in result.stderr
    assert "  resources.workers: should be" in result.stderr


def test_a_refusal_with_json_is_a_problem_document_on_stderr(syncbn: Syncbn, spec: str) -> None:
    result = syncbn("submit", spec, "--set", "trainin.seed=1", "--json")

    problem = json.loads(result.stderr)
    assert (result.exit_code, result.stdout) == (2, "")
    assert (problem["status"], problem["errors"][0]["key"]) == (422, "trainin")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [", "neither YAML nor JSON"),
        ("just words", "a spec is a mapping"),
        ("{model: .nan}", "a value that JSON has not"),
        ('{name: "\\ud800"}', "a value that JSON has not"),
    ],
)
def test_a_file_that_is_no_spec_is_refused(syncbn: Syncbn, text: str, said: str) -> None:
    result = syncbn("submit", "-", stdin=text)

    assert result.exit_code == 2
    assert said in result.stderr


def test_a_missing_file_or_code_directory_is_named(syncbn: Syncbn, spec: str) -> None:
    no_file, no_code = syncbn("submit", "nowhere.yaml"), syncbn("submit", spec, "--code", "nowhere")

    assert (no_file.exit_code, no_code.exit_code) == (2, 2)
    assert "cannot read nowhere.yaml: No such file" in no_file.stderr
    assert "nowhere is not a directory" in no_code.stderr


def test_validate_says_what_would_run(syncbn: Syncbn, spec: str, client: Client) -> None:
    result = syncbn("validate", spec, "--set", "training.global_batch_size=7", "--set", "resources.workers=3")

    assert result.exit_code == 0
    assert "3 workers, 3 CPUs" in result.stdout
    assert "3, 2, 2" in result.stdout
    assert json.loads(syncbn("validate", spec, "--json").stdout)["valid"]
    assert list(client.jobs()) == []


def test_validate_says_when_a_job_can_never_run(syncbn: Syncbn, spec: str) -> None:
    result = syncbn("validate", spec, "--set", "resources.workers=30")

    assert "never on this cluster as it is" in result.stdout


def test_schema_is_json_schema_and_needs_no_server(syncbn: Syncbn) -> None:
    schema = json.loads(syncbn("schema", SYNCBN_URL="http://127.0.0.1:1").stdout)

    assert "training" in schema["properties"]


# Following


@pytest.mark.parametrize(("end", "error", "code"), [(State.SUCCEEDED, None, 0), (State.FAILED, FAILURE, 1)])
def test_a_followed_job_is_told_line_by_line_and_its_end_last(
    syncbn: Syncbn,
    client: Client,
    playing: Callable[..., None],
    end: State,
    error: dict[str, Any] | None,
    code: int,
) -> None:
    job = client.submit(SPEC, idempotency_key="same")
    playing(job.id, end, error)

    result = syncbn("submit", "-", "--key", "same", "--follow", stdin=json.dumps(SPEC))

    lines = result.stdout.splitlines()
    assert result.exit_code == code
    assert lines[0] == f"job {job.id}"
    assert "running" in lines
    assert "step 4/4 · epoch 2 · train_loss 0.25 · val_accuracy 1 · test_accuracy 0.97 · 0 s left" in lines
    assert any(line.startswith(f"{end}  digits  after ") for line in lines)
    assert ("  ValueError: bad shape (worker 1)" in lines) == (end is State.FAILED)
    assert any(line.split() == ["test_accuracy", "0.97"] for line in lines)


def test_follow_with_json_keeps_stdout_for_the_job(
    syncbn: Syncbn, client: Client, playing: Callable[..., None]
) -> None:
    playing(client.submit(SPEC, idempotency_key="same").id, State.CANCELLED)

    result = syncbn("submit", "-", "--key", "same", "--follow", "--json", stdin=json.dumps(SPEC))

    assert result.exit_code == 3
    assert json.loads(result.stdout)["state"] == "cancelled"
    assert "running" in result.stderr


def test_an_interrupted_follow_leaves_the_job_and_exits_130(
    service: Service, client: Client, spec: str
) -> None:
    command = [sys.executable, "-c", "from service.cli import main; main()", "submit", spec, "--follow"]
    environment = {**os.environ, "SYNCBN_URL": service.url}
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        job_id = process.stdout.readline().split()[1]
        assert process.stdout.readline().startswith("queued")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)

    assert process.returncode == 130
    assert f"the job goes on. To end it: syncbn cancel {job_id}" in output
    assert errors == ""
    assert client.job(job_id).state == "queued"


def test_a_terminal_shows_the_job_live_and_then_its_result(
    client: Client, playing: Callable[..., None]
) -> None:
    job = client.submit(SPEC)
    playing(job.id, State.SUCCEEDED)
    screen = Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=100)

    ended = display.follow(client, job.id, screen)

    assert isinstance(screen.file, io.StringIO)
    shown = screen.file.getvalue()
    assert ended.state == "succeeded"
    assert "step 4/4 · epoch 2" in shown
    assert "test_accuracy" in shown
    assert "runs/run-1" in shown


def test_a_server_that_is_away_is_told_once_and_the_follow_goes_on(
    service: Service, client: Client, later: Later
) -> None:
    job = client.submit(SPEC)
    screen = Console(file=io.StringIO(), width=200)

    def restart() -> None:
        service.server.stop()
        service.store.request_cancel(job.id)
        time.sleep(0.7)  # longer than the client rests between two looks
        service.server.start()

    later(0.3, restart)
    ended = display.follow(client, job.id, screen)

    assert isinstance(screen.file, io.StringIO)
    assert ended.state == "cancelled"
    assert screen.file.getvalue().count("the server does not answer; the job goes on") == 1


def test_a_submission_that_may_have_arrived_tells_how_to_repeat_it(
    syncbn: Syncbn, service: Service, spec: str
) -> None:
    service.faults.lose_answers = 100

    result = syncbn("submit", spec, "--key", "mine")

    assert result.exit_code == 5
    assert "--key mine" in result.stderr


# Looking


def test_list_shows_the_newest_jobs_and_says_when_there_are_more(syncbn: Syncbn, client: Client) -> None:
    ids = [client.submit({**SPEC, "name": f"job [{i}]"}).id for i in range(3)]

    shown = syncbn("list", "--limit", "2").stdout
    assert [ids[2] in shown, ids[1] in shown, ids[0] in shown] == [True, True, False]
    assert "job [2]" in shown
    assert "there are more" in shown
    assert ids[0] in syncbn("list", "--all").stdout


def test_list_json_is_an_array_chosen_by_the_options(syncbn: Syncbn, client: Client) -> None:
    client.submit(SPEC)
    labelled = client.submit({**SPEC, "labels": {"team": "vision"}})

    result = syncbn("list", "--label", "team=vision", "--state", "queued", "--state", "running", "--json")

    assert [job["id"] for job in json.loads(result.stdout)] == [labelled.id]


def test_an_empty_list_says_so(syncbn: Syncbn) -> None:
    assert syncbn("list").stdout == "no jobs\n"
    assert json.loads(syncbn("list", "--json").stdout) == []


def test_list_refuses_an_unknown_state_and_a_label_without_value(syncbn: Syncbn) -> None:
    unknown, label = syncbn("list", "--state", "sleeping"), syncbn("list", "--label", "team")

    assert (unknown.exit_code, label.exit_code) == (2, 2)
    assert "queued" in unknown.stderr
    assert "KEY=VALUE" in label.stderr


def test_a_name_cannot_steer_the_terminal(syncbn: Syncbn, client: Client) -> None:
    client.submit({**SPEC, "name": "evil\x1b[2Jname"})

    assert "\x1b" not in syncbn("list").stdout


def test_show_tells_all_about_a_running_job(syncbn: Syncbn, service: Service, client: Client) -> None:
    job = client.submit({**SPEC, "labels": {"team": "vision"}})
    service.train(service.start_job(job.id), 3)

    shown = syncbn("show", job.id).stdout

    for text in (job.id, "running", "step 3/4", "val_accuracy 0.75", "team=vision", "runs/run-1"):
        assert text in shown
    assert json.loads(syncbn("show", job.id, "--json").stdout)["progress"]["step"] == 3


def test_show_tells_why_a_job_failed(syncbn: Syncbn, service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    service.start_job(job.id)
    service.end_job(job.id, State.FAILED, FAILURE)

    shown = syncbn("show", job.id).stdout

    assert "ValueError: bad shape (worker 1)" in shown
    assert "│ Traceback" in shown


def test_logs_prints_the_log_whole_tailed_and_followed(
    syncbn: Syncbn, service: Service, client: Client
) -> None:
    job = client.submit(SPEC)
    service.start_job(job.id)
    service.print(job.id, "one\n[red]two[/red]\n")
    service.end_job(job.id, State.SUCCEEDED)

    assert syncbn("logs", job.id).stdout == "one\n[red]two[/red]\n"
    assert syncbn("logs", job.id, "--tail", "1").stdout == "[red]two[/red]\n"
    assert syncbn("logs", job.id, "-f").stdout == "one\n[red]two[/red]\n"
    assert json.loads(syncbn("logs", job.id, "--json").stdout) == {"text": "one\n[red]two[/red]\n"}
    lines = syncbn("logs", job.id, "-f", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [{"line": "one"}, {"line": "[red]two[/red]"}]


def test_metrics_are_a_table_of_curves(syncbn: Syncbn, service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    assert syncbn("metrics", job.id).stdout == "no metrics yet\n"
    service.train(service.start_job(job.id), 4)

    header, accuracy, loss = syncbn("metrics", job.id).stdout.splitlines()

    assert header.split() == ["METRIC", "LAST", "MIN", "MAX", "STEP", "POINTS", "CURVE"]
    assert accuracy.split() == ["val_accuracy", "1", "0.25", "1", "4", "4", "▁▃▆█"]
    assert loss.split()[:6] == ["train_loss", "0.25", "0.25", "1", "4", "4"]
    points = json.loads(syncbn("metrics", job.id, "train_loss", "--json").stdout)
    assert [(point["name"], point["step"]) for point in points] == [("train_loss", i) for i in range(1, 5)]


def test_queue_and_cluster_are_tables(syncbn: Syncbn, client: Client) -> None:
    assert syncbn("queue").stdout == "no job waits\n"
    job = client.submit({**SPEC, "resources": {"workers": 3}})

    queue, cluster = syncbn("queue").stdout, syncbn("cluster").stdout

    assert job.id in queue
    assert "3 workers, 3 CPUs" in queue
    assert [line.split() for line in cluster.splitlines()] == [
        ["NODE", "ADDRESS", "CPUS", "GPUS"],
        ["node-1", "127.0.0.1", "4", "0"],
        ["total", "4", "0"],
        ["free", "4", "0"],
    ]
    assert json.loads(syncbn("queue", "--json").stdout)[0]["id"] == job.id
    assert json.loads(syncbn("cluster", "--json").stdout)["free"]["cpus"] == 4


# Ending


def test_wait_exits_as_the_job_ended(syncbn: Syncbn, client: Client, playing: Callable[..., None]) -> None:
    ended = {State.SUCCEEDED: 0, State.FAILED: 1, State.CANCELLED: 3}
    jobs = {state: client.submit(SPEC).id for state in ended}
    for state, job_id in jobs.items():
        playing(job_id, state, FAILURE if state is State.FAILED else None)

    results = {state: syncbn("wait", job_id) for state, job_id in jobs.items()}

    assert {state: result.exit_code for state, result in results.items()} == ended
    assert "test_accuracy  0.97" in results[State.SUCCEEDED].stdout
    assert "ValueError: bad shape (worker 1)" in results[State.FAILED].stdout
    assert json.loads(syncbn("wait", jobs[State.FAILED], "--json").stdout)["state"] == "failed"


def test_wait_that_runs_out_of_time_exits_124(syncbn: Syncbn, client: Client) -> None:
    result = syncbn("wait", client.submit(SPEC).id, "--timeout", "0.1")

    assert (result.exit_code, result.stdout) == (124, "")
    assert "still queued after 0.1 s" in result.stderr


def test_cancel_tries_every_job(syncbn: Syncbn, client: Client) -> None:
    first, last = client.submit(SPEC).id, client.submit(SPEC).id

    result = syncbn("cancel", first, "j-unknown", last)

    assert result.exit_code == 4
    assert "no job 'j-unknown'" in result.stderr
    assert {job.state for job in client.jobs()} == {"cancelled"}
    assert [line.split() for line in result.stdout.splitlines()[1:]] == [
        [first, "cancelled"],
        [last, "cancelled"],
    ]


def test_a_job_that_has_ended_cannot_be_cancelled(syncbn: Syncbn, service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    service.start_job(job.id)
    service.end_job(job.id, State.SUCCEEDED)

    result = syncbn("cancel", job.id, "--json")

    assert (result.exit_code, json.loads(result.stdout)) == (2, [])
    assert json.loads(result.stderr)["status"] == 409


# Without the service


def test_train_runs_the_spec_here_and_exits_as_it_does(
    syncbn: Syncbn, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[Spec, Path | None, Path]] = []

    def train_locally(spec: Spec, *, code: Path | None, output: Path) -> int:
        called.append((spec, code, output))
        return 1

    monkeypatch.setitem(sys.modules, "training.local", SimpleNamespace(train_locally=train_locally))

    result = syncbn("train", spec, "--set", "training.seed=3", "--code", str(tmp_path))

    ((parsed, code, output),) = called
    assert result.exit_code == 1
    assert (parsed.training.seed, code, output) == (3, tmp_path, Path("output"))


def test_train_reports_a_bad_spec_as_submit_does(syncbn: Syncbn, spec: str) -> None:
    result = syncbn("train", spec, "--set", "trainin.seed=3")

    assert result.exit_code == 2
    assert "  trainin: unknown key; did you mean training?\n" in result.stderr


def test_up_runs_the_stack_and_exits_as_it_does(syncbn: Syncbn, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[dict[str, Any]] = []

    def run(**arguments: Any) -> int:
        called.append(arguments)
        return 0

    monkeypatch.setitem(sys.modules, "service.stack", SimpleNamespace(run=run))

    assert syncbn("up", "--port", "8001").exit_code == 0
    assert called == [
        {"data_dir": Path("syncbn-data"), "host": "127.0.0.1", "port": 8001, "mlflow_port": 5000}
    ]


# What can be wrong with the server


@pytest.mark.parametrize("command", ["show", "logs", "metrics", "wait", "cancel"])
def test_an_unknown_job_exits_4(syncbn: Syncbn, command: str) -> None:
    result = syncbn(command, "j-unknown")

    assert result.exit_code == 4
    assert result.stderr.startswith("error: no job 'j-unknown'")


def test_an_unreachable_server_exits_5_and_says_what_to_do(syncbn: Syncbn) -> None:
    result = syncbn("--url", "http://127.0.0.1:1", "list")

    assert (result.exit_code, result.stdout) == (5, "")
    for text in ("http://127.0.0.1:1", "SYNCBN_URL", "syncbn up"):
        assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_key_is_asked_for_and_one_given_opens(
    live_server: LiveServer[FaultyApp], tmp_path: Path
) -> None:
    with live_service(live_server, tmp_path, api_key="hunter2") as service:
        environment = {"SYNCBN_URL": service.url, "SYNCBN_API_KEY": None}
        refused = CliRunner().invoke(app, ["list"], env=environment)
        opened = CliRunner().invoke(app, ["--api-key", "hunter2", "list"], env=environment)

    assert (refused.exit_code, opened.exit_code) == (2, 0)
    assert "SYNCBN_API_KEY" in refused.stderr
