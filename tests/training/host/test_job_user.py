"""The system users of jobs: what the setting says, what the agent does in their folders, what they may."""

from __future__ import annotations

import json
import os
import pwd
import socket
import sys
from collections.abc import Callable, Iterator
from multiprocessing import Pipe, Process
from pathlib import Path

import pytest

from tests.open_python import open_folder
from training.errors import BuildError
from training.host.accounts import Accounts
from training.host.gang import Gang
from training.host.job_folders import give_run_folder
from training.host.job_user import CLAIMS, JobUser, JobUserError, JobUsers, of_environment
from training.protocol import Exit, Order, RankAssignment, exit_file, log_file

USER = JobUser(name="job", uid=1_200_000_001, gid=1_200_000_001)
OTHER = JobUser(name="other", uid=1_200_000_002, gid=1_200_000_002)
SECRET = '{"rank": 0, "kind": "finished", "log_tail": "of root"}'
needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can become another user"
)


@pytest.fixture
def storage() -> Iterator[Path]:
    """A folder for runs that other users can pass through."""
    with open_folder() as folder:
        (folder / "storage").mkdir()
        (folder / "storage").chmod(0o711)
        yield folder / "storage"


def order(folder: Path, **changes: object) -> Order:
    fields: dict[str, object] = {
        "attempt": "job-1",
        "spec": {"resources": {"gpus_per_worker": 0, "cpus_per_worker": 1}},
        "ranks": (RankAssignment(rank=0, local_rank=0, node_rank=0),),
        "world_size": 1,
        "folder": str(folder),
    }
    return Order(**{**fields, **changes})  # type: ignore[arg-type]


def as_user(user: JobUser, act: Callable[[], object]) -> int:
    """Returns the exit code of a process that becomes the user and does something: 0 without an error."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            user.become()
            act()
            code = 0
        except PermissionError:
            code = 13
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    "text", ["", "a b", "-1-5", "0-5", "5-5", "9-5", "1-4294967295", "../etc", "a/b", "1-2-3"]
)
def test_what_is_neither_a_name_nor_a_range_is_refused(text: str) -> None:
    with pytest.raises(JobUserError, match="SYNCBN_JOB_USER"):
        JobUsers.named(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [("nobody-here-has-this", "no system user"), ("root", "is root"), ("1-70000", "is in the range")],
)
def test_a_user_that_is_missing_or_has_rights_is_refused(text: str, why: str) -> None:
    with pytest.raises(JobUserError, match=why):
        JobUsers.named(text)


def test_an_agent_that_is_not_root_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    users = of_environment({"SYNCBN_JOB_USER": "nobody"})

    assert users is not None
    with pytest.raises(JobUserError, match=r"start it as root, or leave the variable out|needs Linux"):
        users.check()
    assert of_environment({"SYNCBN_JOB_USER": ""}) is None


def test_all_jobs_have_the_one_user_that_is_named(tmp_path: Path) -> None:
    users = JobUsers.named("nobody")

    assert users.of("ada", tmp_path) == users.of(None, tmp_path)
    assert users.of("ada", tmp_path).uid == pwd.getpwnam("nobody").pw_uid
    assert users.has(pwd.getpwnam("nobody").pw_uid)
    assert not users.has(0)


def test_each_user_keeps_a_user_id_of_its_own_until_all_are_taken(tmp_path: Path) -> None:
    users = JobUsers(first=7, last=10)

    given = {user: users.of(user, tmp_path).uid for user in ("ada", "bob", "a/../c", None)}

    assert sorted(given.values()) == [7, 8, 9, 10]
    # On another machine, in another order.
    assert {user: JobUsers(first=7, last=10).of(user, tmp_path).uid for user in reversed(given)} == given
    assert {path.name for path in (tmp_path / CLAIMS).iterdir()} == {"7", "8", "9", "10"}
    with pytest.raises(JobUserError, match="all 4 user ids are taken"):
        users.of("dora", tmp_path)


@needs_root
def test_a_process_that_has_become_the_user_has_no_way_back() -> None:
    def check() -> None:
        assert os.getresuid() == (USER.uid,) * 3
        assert os.getresgid() == (USER.gid,) * 3
        assert os.getgroups() == []
        status = Path("/proc/self/status").read_text()
        assert "NoNewPrivs:\t1" in status
        assert "CapEff:\t0000000000000000" in status
        assert Path("/proc/self/environ").read_bytes() is not None  # its own /proc is its own
        with pytest.raises(PermissionError):
            os.setuid(0)

    assert as_user(USER, check) == 0
    assert as_user(USER, lambda: Path("/etc/shadow").read_text()) == 13


@needs_root
def test_a_run_folder_is_open_to_its_user_and_to_the_group_of_the_storage_alone(storage: Path) -> None:
    service = JobUser(name="service", uid=1_200_000_003, gid=1_200_000_003)
    os.chown(storage, service.uid, service.gid)
    run = storage / "job"

    give_run_folder(run, USER)

    def write() -> None:
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "one").write_text("content")

    def delete() -> None:
        assert (run / "checkpoints" / "one").read_text() == "content"
        (run / "checkpoints" / "one").unlink()
        (run / "checkpoints").rmdir()

    assert as_user(USER, write) == 0
    assert as_user(OTHER, lambda: list(run.iterdir())) == 13
    assert as_user(OTHER, lambda: (run / "checkpoints" / "one").read_text()) == 13
    assert as_user(OTHER, lambda: (run / "mine").touch()) == 13
    assert as_user(service, delete) == 0


@needs_root
def test_a_run_of_a_time_without_the_setting_becomes_its_user_s_and_no_link_is_followed(
    storage: Path,
) -> None:
    outside = storage.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("of root")
    run = storage / "job"
    (run / "logs" / "attempt-1").mkdir(parents=True)
    (run / "logs" / "attempt-1" / "rank-0.log").write_text("said\n")
    (run / "link").symlink_to(outside)
    (run / "name").hardlink_to(outside / "secret")

    give_run_folder(run, USER)
    (run / "logs" / "attempt-2").mkdir()  # the service has a line to say
    give_run_folder(run, USER)

    owners = {path.relative_to(run).as_posix(): path.lstat().st_uid for path in run.rglob("*")}
    assert owners == {
        "logs": USER.uid,
        "logs/attempt-1": USER.uid,
        "logs/attempt-1/rank-0.log": USER.uid,
        "logs/attempt-2": USER.uid,
        "link": 0,
        "name": 0,
    }
    assert outside.stat().st_uid == 0


def plant_again(run: Path, outside: Path, plant: str) -> None:
    """Puts something in place of each file that the agent reads or writes, as a job could."""
    position = run / "hang" / "attempt-1-start-1" / "rank-0.position"
    for path in (exit_file(run, 1, 1, 0), log_file(run, 1, 0), position):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if plant == "link":
            path.symlink_to(outside / "target")
        elif plant == "hard link":
            path.hardlink_to(outside / "target")
        else:
            os.mkfifo(path)
        for folder in (path.parent, path.parent.parent):
            os.chown(folder, USER.uid, USER.gid)


@needs_root
@pytest.mark.parametrize("plant", ["link", "hard link", "pipe"])
def test_the_agent_neither_reads_nor_writes_through_what_a_job_has_planted(storage: Path, plant: str) -> None:
    outside = storage.parent / "outside"
    outside.mkdir(mode=0o700)
    (outside / "target").touch(mode=0o600)
    (outside / "target").write_text(SECRET)
    run, given = storage / "job", order(storage / "job")
    give_run_folder(run, USER)
    plant_again(run, outside, plant)
    before = {path: path.stat().st_mtime_ns for path in (outside, outside / "target")}
    gang = Gang(given, lambda: None)
    gang.user = USER

    gang.delete_files_of_earlier_launch()
    plant_again(run, outside, plant)
    (run / "stop").symlink_to(outside)
    control, supervisor = Pipe()
    reports, ranks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reports.setblocking(False)
    process = Process()  # which has ended when the supervisor is gone
    process.start()
    gang.attach(process, control, reports)
    gang.stop(60.0)
    gang.check_deadlines()
    supervisor.send_bytes(json.dumps({"rank": 0, "status": 9, "step": 3, "out_of_memory": ""}).encode())
    gang.read_control()
    supervisor.close()
    gang.read_control()
    gang.close()
    ranks.close()

    (record,) = gang.status().exits
    assert (record.kind, record.log_tail) == (Exit.ENDED, "")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (outside / "target").read_text() == SECRET


@needs_root
def test_a_job_starts_from_checkpoints_of_its_own_user_alone(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNCBN_ENVIRONMENTS", str(storage.parent / "environments"))
    (storage.parent / "agent").mkdir()
    groups, umask = os.getgroups(), os.umask(0o022)
    try:
        accounts = Accounts(JobUsers(first=USER.uid, last=OTHER.uid), {}, storage.parent / "agent", None)
        first = accounts.of(order(storage / "one", user="ada"))
        source = str(storage / "one")

        same = accounts.of(order(storage / "two", user="ada", start_from=source))
        with pytest.raises(BuildError, match="belongs to another user"):
            accounts.of(order(storage / "three", user="bob", start_from=source))
    finally:
        os.setgroups(groups)
        os.umask(umask)
    assert first.user == same.user
    assert Path(same.variables["HOME"]).stat().st_uid == same.user.uid  # type: ignore[union-attr]


def test_no_job_starts_while_the_setting_is_wrong(tmp_path: Path) -> None:
    accounts = Accounts(JobUserError("no such user"), {}, tmp_path, None)

    with pytest.raises(JobUserError, match="no such user"):
        accounts.of(order(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
